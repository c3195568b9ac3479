"""Frozen records that travel between the rooms. No torch: read-only commands use them too."""

from __future__ import annotations

from hlscore.records.model import (
    Candidate,
    Fingerprint,
    Form,
    Matrix,
    ModelDimensions,
    ModelIdentity,
    ParameterSize,
    Storage,
)
from hlscore.records.probes import (
    LOSS_ON,
    NO_PROBES,
    LossTokens,
    ProbeSummary,
    RolloutSummary,
)
from hlscore.records.report import (
    OF_UPDATES,
    Estimate,
    GradientStatistics,
    ModuleRow,
    RunInfo,
    ScoreReport,
    Status,
    WeightStatistics,
    movement_in,
)

__all__ = [
    "LOSS_ON", "NO_PROBES", "OF_UPDATES", "Candidate", "Estimate", "Fingerprint", "Form",
    "GradientStatistics", "LossTokens", "Matrix", "ModelDimensions", "ModelIdentity", "ModuleRow",
    "ParameterSize", "ProbeSummary", "RolloutSummary", "RunInfo", "ScoreReport", "Status",
    "Storage", "WeightStatistics", "movement_in",
]  # fmt: skip
