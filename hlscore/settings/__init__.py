"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

from hlscore.settings.capture import (
    CAPTURE_PANEL,
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
    Limit,
    parse_age,
    parse_limit,
)
from hlscore.settings.data import (
    DATA_PANEL,
    DEFAULT_MAX_LENGTH,
    DEFAULT_SAMPLES,
    NO_DATA,
    CandidateSettings,
    DataSettings,
    parse_columns,
)
from hlscore.settings.model import (
    MODEL_PANEL,
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
from hlscore.settings.option import (
    Option,
    Setting,
    arguments,
    build,
    changed,
    setting_of,
    settings_in,
)
from hlscore.settings.plan import (
    DEFAULT_RANK,
    LARGEST_RANK,
    MEMORY_PANEL,
    PLAN_PANEL,
    VALUE_POWER,
    BaseBits,
    Baseline,
    Master,
    MemorySettings,
    Optimizer,
    PlanSettings,
    parse_ranks,
)
from hlscore.settings.run import (
    RankSettings,
)
from hlscore.settings.validate import DEFAULT_STEPS, TRIAL_PANEL, ValidateSettings

__all__ = [
    "CAPTURE_PANEL",
    "DATA_PANEL",
    "DEFAULT_MAX_LENGTH",
    "DEFAULT_PROMPTS",
    "DEFAULT_RANK",
    "DEFAULT_SAMPLES",
    "DEFAULT_STEPS",
    "LARGEST_RANK",
    "MEMORY_PANEL",
    "MODEL_PANEL",
    "NO_DATA",
    "PLAN_PANEL",
    "TRIAL_PANEL",
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
    "Limit",
    "LoadIn",
    "Master",
    "MemorySettings",
    "ModelSettings",
    "Movement",
    "Objective",
    "ObjectiveSettings",
    "Optimizer",
    "Option",
    "PaddingSide",
    "PlanSettings",
    "RankSettings",
    "Setting",
    "SvdMethod",
    "TrialOptimizer",
    "ValidateSettings",
    "arguments",
    "build",
    "changed",
    "parse_age",
    "parse_columns",
    "parse_limit",
    "parse_ranks",
    "setting_of",
    "settings_in",
]
