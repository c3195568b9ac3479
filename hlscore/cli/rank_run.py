"""What `hlscore rank` does once its options are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hlscore.errors import HlscoreError, Interrupted, UsageError
from hlscore.processes import joined, started_as
from hlscore.settings import RankSettings
from hlscore.unfinished import remove_half_written, remove_unfinished, unfinished_runs

if TYPE_CHECKING:
    from hlscore.flow import RankResult
    from hlscore.rollouts.records import RolloutSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What is done with stored progress and earlier results."""

    every_seconds: float
    resume: bool
    force: bool


def run_rank(
    settings: RankSettings, out: Path | None, saved: Saved, *, top: int, as_json: bool
) -> None:
    """Score a model, plan, write and print.

    Args:
        out: Folder for the results; `None` for the default one.
    """
    from hlscore.artifacts.files import default_folder

    # What can be refused at once is refused before torch is even imported.
    _check_settings(settings)
    _check_saved(settings, saved)
    folder = out or default_folder(settings.model.model)
    if started_as().is_main:
        _check_folder(folder, saved, sampling=settings.objective.samples_rollouts)

    from hlscore.views.result import print_rank_json, print_result

    try:
        result = _score(settings, folder, saved)
    except KeyboardInterrupt:
        if unfinished_runs(folder):
            raise Interrupted(
                "Interrupted: no results were written, the progress is kept.",
                hint="Run the same command with --resume to continue.",
            ) from None
        raise
    if result is None:  # the main process writes and prints
        return
    paths = result.save(folder, force=True)  # looked at before the run
    remove_unfinished(folder)
    if as_json:
        print_rank_json(result.plan, paths)
    else:
        print_result(result.report, result.plan, paths, top=top)


def _check_settings(settings: RankSettings) -> None:
    from hlscore.planning.problem import check_plan_settings
    from hlscore.scores.registry import check_of_updates, check_without_probes

    check_plan_settings(settings.plan)
    if settings.updates:
        check_of_updates(settings.plan.score)
    if settings.data.without_probes:
        check_without_probes(settings.plan.score)
    if settings.objective.rewards:
        from hlscore.rollouts.reward_process import check_rewards

        check_rewards(settings.objective.rewards, settings.objective.reward_weights)


def _check_saved(settings: RankSettings, saved: Saved) -> None:
    if not (settings.data.without_probes or settings.updates):
        return
    option = "--update" if settings.updates else "--data none"
    if saved.resume:
        raise UsageError(
            f"--resume continues stored probes, and {option} has none.", hint="Remove it."
        )
    if started_as().size > 1:
        raise UsageError(
            f"{option} runs in one process, and {started_as().size} were started.",
            hint="Start it without torchrun.",
        )


def _check_folder(folder: Path, saved: Saved, *, sampling: bool) -> None:
    from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE, check_folder

    names = (SCORES_FILE, PLAN_FILE, *((ROLLOUTS_FILE,) if sampling else ()))
    check_folder(folder, names, force=saved.force)
    remove_half_written(folder)
    if saved.resume or not unfinished_runs(folder):
        return
    if not saved.force:
        raise UsageError(
            f"'{folder}' holds an unfinished run.",
            hint="Go on with --resume, start anew with --force, or choose another --out.",
        )
    remove_unfinished(folder)


def _score(settings: RankSettings, folder: Path, saved: Saved) -> RankResult | None:
    from hlscore.views.progress import status, terminal_progress, warn

    with status("loading torch and transformers"):
        from hlscore.flow import Storage, rank_model, score_stored_weights, score_updates
        from hlscore.inputs.examples import read_probes
        from hlscore.inputs.model import load_model, resolve_device
        from hlscore.inputs.placement import dtype_warning
        from hlscore.inputs.sharding import load_sharded
    if settings.updates:
        with terminal_progress() as progress:
            return score_updates(settings, progress)[0]
    if settings.data.without_probes:
        with terminal_progress() as progress:
            return score_stored_weights(settings, progress)
    warn(dtype_warning(settings.model, resolve_device(settings.model.device)))
    with status("reading probe data"):
        examples = read_probes(settings)
    every = saved.every_seconds or float("inf")
    storage = Storage(folder=folder, every_seconds=every, resume=saved.resume)
    with joined() as processes:
        with status(f"loading {settings.model.model}"):
            loaded = (
                load_sharded(settings.model, processes)
                if settings.model.shard
                else load_model(settings.model)
            )
        kept: list[RolloutSet] = []
        with terminal_progress() as progress, _kept(kept, folder, is_main=processes.is_main):
            return rank_model(
                loaded.model,
                loaded.tokenizer,
                loaded.identity,
                examples,
                settings,
                progress,
                processes=processes,
                storage=storage if saved.resume or saved.every_seconds > 0 else None,
                sampled=kept.append,
            )


@contextmanager
def _kept(sampled: list[RolloutSet], folder: Path, *, is_main: bool) -> Iterator[None]:
    """Leave completions that cannot be probed for the user to look at."""
    try:
        yield
    except HlscoreError as error:
        if not (sampled and is_main):
            raise
        from hlscore.artifacts.files import UNSCORED_FILE, write_files
        from hlscore.rollouts.files import write_rollouts

        paths = write_files(folder, {UNSCORED_FILE: lambda path: write_rollouts(sampled[0], path)})
        remove_unfinished(folder)
        hint = f"{error.hint} The completions are in '{paths[UNSCORED_FILE]}' (--rollouts)."
        raise type(error)(error.message, hint=hint.strip()) from error


def run_forecast(settings: RankSettings, *, as_json: bool) -> None:
    """Say what a run would do."""
    from hlscore.views.progress import status, warn

    _check_settings(settings)
    with status("loading torch and transformers"):
        from hlscore.flow import forecast, forecast_weights
        from hlscore.inputs.examples import read_probes
        from hlscore.inputs.model import load_shape, load_tokenizer, resolve_device
        from hlscore.inputs.placement import dtype_warning
        from hlscore.views.forecast import print_forecast, print_weight_forecast
    device = resolve_device(settings.model.device)
    warn(dtype_warning(settings.model, device))
    if settings.data.without_probes or settings.updates:
        with status("reading configuration"):
            model, _ = load_shape(settings.model)
            weights = forecast_weights(model, settings)
        print_weight_forecast(weights, settings, device=str(device), as_json=as_json)
        return
    with status("reading configuration and probe data"):
        model, files = load_shape(settings.model)
        tokenizer = load_tokenizer(files, settings.model)
        examples = read_probes(settings)
        found = forecast(model, tokenizer, examples, settings, device)
    print_forecast(found, settings, device=str(device), as_json=as_json)
