"""`hlscore rank`: the whole flow, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hlscore.cli import options as o
from hlscore.errors import HlscoreError, Interrupted, UsageError
from hlscore.processes import joined, started_as
from hlscore.settings import RankSettings, option
from hlscore.unfinished import nothing_to_resume, remove_unfinished, unfinished_runs
from hlscore.views.progress import refused_unless, status, terminal_progress, warn

if TYPE_CHECKING:
    from hlscore.flow.result import RankResult
    from hlscore.rollouts.records import RolloutSet


@o.command()
def rank(
    settings: Annotated[RankSettings, o.Options(without=("baseline",))],
    out: Path | None = o.OUT,
    force: bool = o.FORCE,
    save_every: float = option(
        300.0, "Seconds between two writes of the progress; 0: never.", low=0
    ),
    resume: bool = option(False, "Continue the unfinished run in the folder of the results."),
    top: int = o.TOP,
    as_json: bool = o.JSON,
    dry_run: bool = option(False, "Say what would happen, load no weights, write nothing."),
) -> None:
    """Score every module of a MODEL and plan which to train in full.

    Runs probe batches forward and backward, writes `scores.parquet` and `plan.json`.

    **Examples**

    - `hlscore rank builtin:tiny --budget 0.1`
    - `hlscore rank Qwen/Qwen3-0.6B --data train.jsonl --rank 32`
    - `hlscore rank ./model --budget 0.1p --column prompt=question --column completion=answer`
    - `hlscore rank ./model --data prompts.jsonl --objective grpo --reward math`
    - `hlscore rank ./model --data pairs.jsonl --objective dpo --beta 0.1`
    - `hlscore rank ./model --data train.jsonl --movement gradient`
    - `hlscore rank ./model --estimator sketch --load-in 4bit`
    - `hlscore rank ./model --data none --score snr`
    - `hlscore rank ./model --update ./run-seed-0 --update ./run-seed-1`
    - `torchrun --nproc-per-node 8 -m hlscore rank ./model --data train.jsonl`
    """
    # What can be refused at once is refused before torch is even imported.
    from hlscore.artifacts import files
    from hlscore.planning.problem import check_run_settings

    check_run_settings(settings)
    no_probes = settings.no_probes
    if settings.objective.rewards:
        from hlscore.rollouts.rewards import check_rewards

        check_rewards(settings.objective.rewards, settings.objective.reward_weights)
    process = started_as()
    if no_probes and resume:
        raise UsageError(
            f"--resume continues stored probes, and {no_probes} has none.", hint="Remove it."
        )
    if no_probes and process.size > 1:
        raise UsageError(
            f"{no_probes} runs in one process, and {process.size} were started.",
            hint="Start it without torchrun.",
        )
    if settings.model.shard and process.size == 1:
        with refused_unless(dry_run):
            raise UsageError(
                "--shard spreads the weights over several processes, and there is one.",
                hint="Start it with torchrun --nproc-per-node N -m hlscore rank ...",
            )
    folder = out or files.default_folder(settings.model.model)
    # The progress of several processes need not be on the disk of the first.
    if resume and process.size == 1 and not unfinished_runs(folder):
        raise nothing_to_resume(folder)
    if process.is_main:
        with refused_unless(dry_run):
            _check_folder(folder, settings, resume=resume, force=force)
    if dry_run:
        _forecast(settings, saves=bool(save_every), as_json=as_json)
        return
    if process.is_main:
        remove_unfinished(folder, keep_progress=resume)
    try:
        result = _score(settings, folder, save_every, resume=resume)
    except KeyboardInterrupt:
        if unfinished_runs(folder):
            raise Interrupted(
                "Interrupted: no results were written, the progress is kept.",
                hint="Run the same command with --resume to continue.",
            ) from None
        raise
    if result is None:  # the main process writes and prints
        return
    from hlscore.views.result import print_result

    paths = result.save(folder, force=True)  # looked at before the run
    remove_unfinished(folder)
    print_result(result.report, result.plan, paths, top=top, as_json=as_json)


def _check_folder(folder: Path, settings: RankSettings, *, resume: bool, force: bool) -> None:
    """Refuse a folder that holds results, or an unfinished run that is not continued."""
    from hlscore.artifacts import files

    sampled = (files.ROLLOUTS_FILE,) if settings.objective.samples_rollouts else ()
    files.check_folder(folder, (files.SCORES_FILE, files.PLAN_FILE, *sampled), force=force)
    if unfinished_runs(folder) and not (resume or force):
        raise UsageError(
            f"'{folder}' holds an unfinished run.",
            hint="Continue it with --resume, replace it with --force, or choose another --out.",
        )


def _score(
    settings: RankSettings, folder: Path, save_every: float, *, resume: bool
) -> RankResult | None:
    """Report and plan; `None` in all but the main process."""
    with status("loading torch and transformers"):
        from hlscore.flow.rank import rank_model
        from hlscore.flow.updates import score_updates
        from hlscore.flow.weights_alone import score_weights
        from hlscore.inputs.examples import read_probes
        from hlscore.inputs.model import dtype_warning, load_model, load_sharded
        from hlscore.unfinished import UnfinishedRun
    if settings.updates:
        with terminal_progress() as progress:
            return score_updates(settings, progress)[0]
    if settings.data.without_probes:
        with terminal_progress() as progress:
            return score_weights(settings, progress)
    warn(dtype_warning(settings.model))
    with status("reading probe data"):
        examples = read_probes(settings)
    storage = UnfinishedRun(folder=folder, every_seconds=save_every or float("inf"), resume=resume)
    sampled: list[RolloutSet] = []
    with joined() as processes:
        with status(f"loading {settings.model.model}"):
            if settings.model.shard:
                loaded = load_sharded(settings.model, processes)
            else:
                loaded = load_model(settings.model)
        try:
            with terminal_progress() as progress:
                return rank_model(
                    loaded.model, loaded.tokenizer, loaded.identity, examples, settings, progress,
                    processes=processes, storage=storage if resume or save_every else None,
                    sampled=sampled.append,
                )  # fmt: skip
        except HlscoreError as error:
            if not (sampled and processes.is_main):
                raise
            # Completions that cannot be probed are left for the user to look at.
            from hlscore.artifacts.files import UNSCORED_FILE, write_files
            from hlscore.rollouts.records import write_rollouts

            (drawn,) = sampled
            path = write_files(folder, {UNSCORED_FILE: lambda path: write_rollouts(drawn, path)})
            remove_unfinished(folder)
            hint = f"{error.hint} The completions are in '{path[UNSCORED_FILE]}' (--rollouts)."
            raise type(error)(error.message, hint=hint.strip()) from error


def _forecast(settings: RankSettings, *, saves: bool, as_json: bool) -> None:
    """Say what a run would do."""
    with status("loading torch and transformers"):
        from hlscore.flow.forecast import forecast, forecast_weights
        from hlscore.inputs.examples import read_probes
        from hlscore.inputs.model import dtype_warning, load_shape, load_tokenizer, resolve_device
        from hlscore.views.forecast import print_forecast
    device = resolve_device(settings.model.device)
    warn(dtype_warning(settings.model))
    with status(f"reading configuration{'' if settings.no_probes else ' and probe data'}"):
        model, source = load_shape(settings.model)
        if not settings.no_probes:
            tokenizer, examples = load_tokenizer(source), read_probes(settings)
            found: Any = forecast(model, tokenizer, examples, settings, device)
        else:
            found = forecast_weights(model, settings)
    print_forecast(found, settings, device=str(device), saves=saves, as_json=as_json)
