"""The whole flow: model, probes or weights alone, scores, plan."""

from __future__ import annotations

from hlscore.flow.audit import Audit, audit_of
from hlscore.flow.forecast import Forecast, WeightForecast, forecast, forecast_weights
from hlscore.flow.rank import encode_probes, rank_model, sample_rollouts
from hlscore.flow.result import RankResult
from hlscore.flow.updates import Moved, score_updates
from hlscore.flow.weights_alone import score_weights
from hlscore.gradients.progress import Storage
from hlscore.steps import Progress, Silent

__all__ = [
    "Audit",
    "Forecast",
    "Moved",
    "Progress",
    "RankResult",
    "Silent",
    "Storage",
    "WeightForecast",
    "audit_of",
    "encode_probes",
    "forecast",
    "forecast_weights",
    "rank_model",
    "sample_rollouts",
    "score_updates",
    "score_weights",
]
