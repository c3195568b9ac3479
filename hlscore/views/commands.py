"""Commands that are printed as the next ones to run, with the options of the run before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hlscore.artifacts.files import SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.records import ScoreReport
from hlscore.settings import (
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    PlanSettings,
    arguments,
)
from hlscore.views.terminal import command


def plan_command(
    source: Plan | ScoreReport, scores: Path, *options: str, without: Iterable[str] = ()
) -> str:
    """`hlscore plan` with the settings of a plan or of a run, then further options.

    Args:
        without: Fields of the settings that `options` give.
    """
    if isinstance(source, Plan):
        settings: Mapping[str, Any] = asdict(source.settings)
        ranked = settings_in(source.provenance.settings, "plan")
    else:
        settings = settings_in(source.run.settings, "plan")
        ranked = {"score": source.run.score, "rank": source.run.rank}
    # What the report was ranked by is the default.
    same = [name for name in ("score", "rank") if settings.get(name) == ranked.get(name)]
    words = arguments(PlanSettings, settings, without=[*without, *same])
    return command("plan", scores, *words, *options)


def validate_command(report: ScoreReport, plan_file: Path) -> str:
    """`hlscore validate` of a plan on the model and the data of a run."""
    run = report.run.settings
    # Trainings run on one device, on weights that are neither quantized nor spread.
    placing = ("model", "load_in", "device_map", "max_memory", "offload_folder", "shard")
    words = [
        *arguments(ModelSettings, settings_in(run, "model"), without=placing),
        *arguments(DataSettings, settings_in(run, "data"), without=("samples",)),
    ]
    if settings_in(run, "objective").get("assistant_only_loss"):
        words.append("--assistant-only-loss")
    return command("validate", report.model.model, "--plan", plan_file, *words)


def rank_rollouts_command(report: ScoreReport, rollouts: Path, *options: str) -> str:
    """`hlscore rank` on the completions of a run, with the options of that run."""
    run = report.run.settings
    # The file has the prompts, how they were completed, and the rewards.
    known = (
        "objective", "loss_type", "beta", "rollouts", "rewards", "reward_weights",
        "reward_timeout", "generations", "temperature", "top_p", "top_k", "stop", "generate_batch",
    )  # fmt: skip
    words = [
        *("--objective", "grpo", "--rollouts", str(rollouts)),
        *arguments(ObjectiveSettings, settings_in(run, "objective"), without=known),
        *arguments(ModelSettings, settings_in(run, "model"), without=("model",)),
        *arguments(DataSettings, {"max_length": settings_in(run, "data").get("max_length")}),
        *arguments(CandidateSettings, settings_in(run, "candidates")),
        *arguments(CaptureSettings, settings_in(run, "capture"), without=("padding_side",)),
        *arguments(PlanSettings, settings_in(run, "plan")),
        *(["--weight-scores"] if run.get("weight_scores") else []),
        *(["--seed", str(run["seed"])] if run.get("seed") else []),
    ]
    return command("rank", report.model.model, *words, *options)


def settings_in(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Part of the settings of a run, such as `model`; empty where they do not say."""
    found: Mapping[str, Any] = settings.get(part, {})
    return found


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that selected a plan, if they are in its directory."""
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None
