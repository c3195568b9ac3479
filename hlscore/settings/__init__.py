"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

from hlscore.settings.capture import (
    Accumulator,
    CaptureSettings,
    Estimator,
    Movement,
    PaddingSide,
    SvdMethod,
    TrialOptimizer,
)
from hlscore.settings.check import (
    CheckSettings,
    Drift,
    Most,
    parse_age,
    parse_most,
)
from hlscore.settings.data import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_SAMPLES,
    NO_DATA,
    CandidateSettings,
    DataSettings,
)
from hlscore.settings.model import (
    DeviceMap,
    Dtype,
    LoadIn,
    ModelSettings,
)
from hlscore.settings.objective import (
    DEFAULT_PROMPTS,
    Objective,
    ObjectiveSettings,
)
from hlscore.settings.plan import (
    DEFAULT_RANK,
    VALUE_POWER,
    BaseBits,
    Baseline,
    Master,
    MemorySettings,
    Optimizer,
    PlanSettings,
)
from hlscore.settings.run import (
    RankSettings,
    movement_for,
    samples_for,
    score_for,
)
from hlscore.settings.validate import DEFAULT_STEPS, FACTORS, ValidateSettings

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "DEFAULT_PROMPTS",
    "DEFAULT_RANK",
    "DEFAULT_SAMPLES",
    "DEFAULT_STEPS",
    "FACTORS",
    "NO_DATA",
    "VALUE_POWER",
    "Accumulator",
    "BaseBits",
    "Baseline",
    "CandidateSettings",
    "CaptureSettings",
    "CheckSettings",
    "DataSettings",
    "DeviceMap",
    "Drift",
    "Dtype",
    "Estimator",
    "LoadIn",
    "Master",
    "MemorySettings",
    "ModelSettings",
    "Most",
    "Movement",
    "Objective",
    "ObjectiveSettings",
    "Optimizer",
    "PaddingSide",
    "PlanSettings",
    "RankSettings",
    "SvdMethod",
    "TrialOptimizer",
    "ValidateSettings",
    "movement_for",
    "parse_age",
    "parse_most",
    "samples_for",
    "score_for",
]
