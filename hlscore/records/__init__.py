"""Frozen records that travel between the rooms. No torch: read-only commands use them too."""

from __future__ import annotations

from hlscore.records.model import (
    Candidate,
    Fingerprint,
    Form,
    ModelDimensions,
    ModelIdentity,
    ParameterSize,
    Storage,
)
from hlscore.records.probes import (
    NO_PROBES,
    ProbeSummary,
    RolloutSummary,
)
from hlscore.records.report import (
    Estimate,
    GradientStatistics,
    ModuleRow,
    RunInfo,
    ScoreReport,
    Status,
    WeightStatistics,
)

__all__ = [
    "NO_PROBES",
    "Candidate",
    "Estimate",
    "Fingerprint",
    "Form",
    "GradientStatistics",
    "ModelDimensions",
    "ModelIdentity",
    "ModuleRow",
    "ParameterSize",
    "ProbeSummary",
    "RolloutSummary",
    "RunInfo",
    "ScoreReport",
    "Status",
    "Storage",
    "WeightStatistics",
]
