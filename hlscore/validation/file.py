"""`validation.json`: all figures of a trial."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hlscore.validation.run import ArmTrial, Forgetting, Prepared, Validation

SCHEMA_VERSION = 1


def document(trial: Prepared, found: Validation) -> dict[str, Any]:
    """All figures of a trial as plain data.

    Args:
        trial: What was run.
        found: What came of it.

    Returns:
        What JSON can hold; null stands for what is not finite, as after a divergence.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "verdict": list(found.verdict),
        "notes": list(found.notes),
        "untrained_loss": found.untrained,
        "arms": {
            name: {**_arm(arm), **asdict(found.results[name])} for name, arm in found.arms.items()
        },
        "examples": dict(found.examples),
        "also": None if found.also is None else _also(found.also),
        "made_with": {key: value for key, value in trial.made_with.items() if key != "plan"},
        "machine": {
            "device": str(trial.ground.model.device),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        },
        "training_seconds": round(found.seconds, 1),
    }
    return {key: _without_nan(value) for key, value in content.items()}


def write_validation(content: dict[str, Any], path: Path) -> None:
    """Write the file.

    Args:
        content: From `document`.
        path: Where it goes.
    """
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _also(also: Forgetting) -> dict[str, Any]:
    return {
        "source": also.source,
        "examples": also.examples,
        "untrained_loss": also.untrained,
        "arms": {
            name: {
                "loss": sum(losses) / len(losses),
                "forgotten": sum(losses) / len(losses) - also.untrained,
                "seeds": list(losses),
            }
            for name, losses in also.arms.items()
        },
    }


def _arm(arm: ArmTrial) -> dict[str, Any]:
    steps = arm.outcomes[0].steps
    curves = [outcome.curve for outcome in arm.outcomes]
    return {
        "trained_params": arm.trained_params,
        "memory_bytes": arm.memory_bytes,
        "lora_rank": arm.rank,
        "rate_factors": [
            {"factor": factor, "tuning_loss": loss} for factor, loss in sorted(arm.factors.items())
        ],
        "seconds_per_training": sum(o.seconds for o in arm.outcomes) / len(arm.outcomes),
        "curve": {
            "steps": list(steps),
            "mean": [sum(point) / len(point) for point in zip(*curves, strict=True)],
            "seeds": [list(curve) for curve in curves],
        },
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
