"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

from hlscore.settings.capture import CaptureSettings, Estimator, PaddingSide, TrialOptimizer
from hlscore.settings.check import CheckSettings, Drift, Limit, parse_limit
from hlscore.settings.data import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_SAMPLES,
    CandidateSettings,
    DataSettings,
)
from hlscore.settings.model import MODEL_PANEL, Dtype, ModelSettings
from hlscore.settings.objective import Objective, ObjectiveSettings
from hlscore.settings.option import (
    Setting,
    arguments,
    build,
    changed,
    option,
    parts_of,
    refuse_both,
    setting_of,
    settings_in,
)
from hlscore.settings.plan import (
    DEFAULT_RANK,
    LARGEST_ALPHA,
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
from hlscore.settings.run import RankSettings
from hlscore.settings.show import FILTER_PANEL, Filters
from hlscore.settings.validate import NOT_VALIDATED, VALIDATION_PANEL, ValidateSettings

__all__ = [
    "DEFAULT_MAX_LENGTH", "DEFAULT_RANK", "DEFAULT_SAMPLES", "FILTER_PANEL", "LARGEST_ALPHA",
    "LARGEST_RANK", "MEMORY_PANEL", "MODEL_PANEL", "NOT_VALIDATED", "PLAN_PANEL",
    "VALIDATION_PANEL", "VALUE_POWER",
    "BaseBits", "Baseline", "CandidateSettings", "CaptureSettings", "CheckSettings", "DataSettings",
    "Drift", "Dtype", "Estimator", "Filters", "Limit", "Master", "MemorySettings", "ModelSettings",
    "Objective", "ObjectiveSettings", "Optimizer", "PaddingSide", "PlanSettings",
    "RankSettings", "Setting", "TrialOptimizer", "ValidateSettings", "arguments", "build",
    "changed", "option", "parse_limit", "parse_ranks", "parts_of", "refuse_both", "setting_of",
    "settings_in",
]  # fmt: skip
