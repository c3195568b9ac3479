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


def plan_options(
    settings: Mapping[str, Any], *, without: Iterable[str] = (), scores: ScoreReport | None = None
) -> list[str]:
    """Options that make a plan as settings say.

    Args:
        scores: The report that is planned from: what its run says needs no option.
    """
    left = set(without)
    if scores is not None:
        left |= {
            name for name in ("score", "rank") if settings.get(name) == getattr(scores.run, name)
        }
    return arguments(PlanSettings, settings, without=left)


def model_options(settings: Mapping[str, Any], *, without: Iterable[str] = ()) -> list[str]:
    """Options that load the model of a run in the same way."""
    return arguments(ModelSettings, settings, without=("model", *without))


def data_options(settings: Mapping[str, Any]) -> list[str]:
    """Options that read the data of a run; how many examples is another matter."""
    return arguments(DataSettings, settings, without=("samples",))


def plan_again(report: ScoreReport, path: Path, *options: str, without: Iterable[str] = ()) -> str:
    """`hlscore plan` with the plan options of a run.

    Args:
        without: Fields of the plan settings that `options` give.
    """
    settings = settings_in(report, "plan")
    kept = plan_options(settings, without=without, scores=report)
    return command("plan", path, *kept, *options)


def validate_plan(report: ScoreReport, plan_file: Path) -> str:
    """`hlscore validate` of a plan on the model and the data of a run."""
    # Trainings run on one device, on weights that are neither quantized nor spread.
    objective = settings_in(report, "objective")
    placing = ("load_in", "device_map", "max_memory", "offload_folder", "shard")
    words = [
        *model_options(settings_in(report, "model"), without=placing),
        *data_options(settings_in(report, "data")),
        *(["--assistant-only-loss"] if objective.get("assistant_only_loss") else []),
    ]
    return command("validate", report.model.model, "--plan", plan_file, *words)


def rank_rollouts(report: ScoreReport, rollouts: Path, *options: str) -> str:
    """`hlscore rank` on the completions of a run, with the options of that run."""
    # The file brings the prompts, how they were completed, and the rewards.
    brought = (
        "objective", "loss_type", "beta", "rollouts", "rewards", "reward_weights",
        "reward_timeout", "generations", "temperature", "top_p", "top_k", "stop", "generate_batch",
    )  # fmt: skip
    run: Mapping[str, Any] = report.run.settings
    length = settings_in(report, "data").get("max_length")
    words = [
        *("--objective", "grpo", "--rollouts", str(rollouts)),
        *arguments(ObjectiveSettings, settings_in(report, "objective"), without=brought),
        *model_options(settings_in(report, "model")),
        *arguments(DataSettings, {"max_length": length}),
        *arguments(CandidateSettings, settings_in(report, "candidates")),
        *arguments(CaptureSettings, settings_in(report, "capture"), without=("padding_side",)),
        *plan_options(settings_in(report, "plan")),
        *(["--weight-scores"] if run.get("weight_scores") else []),
        *(["--seed", str(run["seed"])] if run.get("seed") else []),
    ]
    return command("rank", report.model.model, *words, *options)


def settings_in(report: ScoreReport, part: str) -> Mapping[str, Any]:
    """Part of the settings of a run, such as `model`; empty where the report does not say."""
    whole: Mapping[str, Any] = report.run.settings
    found: Mapping[str, Any] = whole.get(part, {})
    return found


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that a plan was chosen by, where they lie in its directory.

    Returns:
        The file; None where there is none, or where no score chose the plan.
    """
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None


def replan(plan: Plan, scores: Path, *options: str) -> str:
    """`hlscore plan` with everything that made a plan.

    Args:
        options: Further options; they come last, so that a lock among them counts.
    """
    run: Mapping[str, Any] = dict(plan.provenance.settings).get("plan", {})  # type: ignore[assignment]
    settings = asdict(plan.settings)
    # What the report was ranked by needs no option.
    same = [name for name in ("score", "rank") if settings[name] == run.get(name)]
    kept = plan_options(settings, without=same)
    return command("plan", scores, *kept, *options)
