"""Validated settings of a run: frozen records, checked on construction, never edited."""

from __future__ import annotations

from hlscore.settings.artifacts import CheckSettings, Drift, Filters, Limit, parse_limit
from hlscore.settings.capture import CaptureSettings
from hlscore.settings.data import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_SAMPLES,
    CandidateSettings,
    DataSettings,
)
from hlscore.settings.model import Dtype, ModelSettings, parse_bytes
from hlscore.settings.objective import ObjectiveSettings
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
    VALUE_POWER,
    BaseBits,
    Baseline,
    Master,
    MemorySettings,
    Optimizer,
    PlanSettings,
    parse_ranks,
)
from hlscore.settings.run import NOT_VALIDATED, RankSettings, ValidateSettings

__all__ = [
    "DEFAULT_MAX_LENGTH", "DEFAULT_RANK", "DEFAULT_SAMPLES", "LARGEST_ALPHA", "LARGEST_RANK",
    "NOT_VALIDATED", "VALUE_POWER",
    "BaseBits", "Baseline", "CandidateSettings", "CaptureSettings", "CheckSettings", "DataSettings",
    "Drift", "Dtype", "Filters", "Limit", "Master", "MemorySettings", "ModelSettings",
    "ObjectiveSettings", "Optimizer", "PlanSettings", "RankSettings", "Setting",
    "ValidateSettings", "arguments", "build", "changed", "option", "parse_bytes", "parse_limit",
    "parse_ranks", "parts_of", "refuse_both", "setting_of", "settings_in",
]  # fmt: skip
