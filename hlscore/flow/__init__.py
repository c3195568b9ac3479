"""The whole flow: model, probes or weights alone, scores, plan."""

from __future__ import annotations

from hlscore.flow.forecast import Forecast, WeightForecast, forecast, forecast_weights
from hlscore.flow.probed import sample_rollouts, score_model, score_probes
from hlscore.flow.updates import Moved, UpdateScores, score_updates
from hlscore.flow.weights_alone import score_held_weights, score_stored_weights
from hlscore.gradients.run import Storage
from hlscore.steps import Progress, Silent

__all__ = [
    "Forecast",
    "Moved",
    "Progress",
    "Silent",
    "Storage",
    "UpdateScores",
    "WeightForecast",
    "forecast",
    "forecast_weights",
    "sample_rollouts",
    "score_held_weights",
    "score_model",
    "score_probes",
    "score_stored_weights",
    "score_updates",
]
