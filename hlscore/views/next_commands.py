"""Commands that several outputs print as the next ones to run, with the options of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hlscore.artifacts.files import PLAN_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.records import ScoreReport
from hlscore.settings import NOT_VALIDATED, PlanSettings, ValidateSettings, arguments
from hlscore.views.terminal import command

Step = tuple[str, str]  # a command and its purpose


def after_rank(report: ScoreReport, plan: Plan, paths: Mapping[str, Path]) -> Iterator[Step]:
    """What to do with the results of a run: files by name."""
    scores, plan_file = paths[SCORES_FILE], paths[PLAN_FILE]
    run: Any = report.run.settings
    objective, any_full = report.probes.objective, bool(plan.totals.full_modules)
    if objective == "grpo" and plan.method == "score" and any_full:
        why = "LoRA with as many trained parameters: with rewards it was as good in our trials"
        yield matched_lora(report, scores), why
    options = ("--budget", "0.2", "-o", "plan-20.json")
    other_budget = plan_again(report, scores, *options, without=("budget",))
    yield other_budget, "another budget, without the model"
    yield for_trainer(plan_file)
    if objective == "sft" and any_full:
        of_run = {part: run.get(part) for part in ("model", "data")}
        of_run["assistant_only_loss"] = run.get("objective", {}).get("assistant_only_loss", False)
        unknown = ("model", "samples", *NOT_VALIDATED)
        words = arguments(ValidateSettings, of_run, without=unknown)
        trial = command("validate", report.model.model, "--plan", plan_file, *words)
        yield trial, "does it beat LoRA and rsLoRA with as many parameters here?"


def plan_again(
    source: Plan | ScoreReport, scores: Path, *options: str, without: Iterable[str] = ()
) -> str:
    """`hlscore plan` with the settings of a plan or of a run, then further options.

    Args:
        without: Fields of the settings that `options` give.
    """
    if isinstance(source, Plan):
        settings: Any = asdict(source.settings)
        ranked: Any = source.provenance.settings.get("plan", {})
    else:
        settings = source.run.settings.get("plan", {})
        ranked = {"score": source.run.score, "rank": source.run.rank}
    # What the report was ranked by is the default.
    same = [name for name in ("score", "rank") if settings.get(name) == ranked.get(name)]
    words = arguments(PlanSettings, settings, without=[*without, *same])
    return command("plan", scores, *words, *options)


def matched_lora(source: Plan | ScoreReport, scores: Path, *, alpha: int | None = None) -> str:
    """The plan to beat: LoRA with as many trained parameters, of the source's alpha by default."""
    words = ("--baseline", "lora-matched", "-o", "lora.json")
    if alpha is None:
        return plan_again(source, scores, *words)
    return plan_again(source, scores, "--alpha", str(alpha), *words, without=("alpha",))


def with_lock(source: Plan | ScoreReport, scores: Path, module: str, mode: str) -> str:
    """The same plan with another mode for a module."""
    return plan_again(source, scores, "--lock", f"{module}={mode}", "-o", "plan-locked.json")


def for_trainer(plan: Path) -> Step:
    """Export a plan."""
    export = command("export", plan, "--to", "trl", "-o", "hybrid")
    return export, "for your trainer; hlscore export --list names the others"


def scores_beside(plan: Plan, path: Path) -> Path | None:
    """The scores that selected a plan, if they are in its directory."""
    scores = path.with_name(SCORES_FILE)
    return scores if plan.method == "score" and scores.is_file() else None
