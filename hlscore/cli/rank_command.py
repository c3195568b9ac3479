"""`hlscore rank`: the whole flow, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlscore.cli import memory_options as m
from hlscore.cli import options as o
from hlscore.errors import Interrupted, UsageError
from hlscore.paths import remove_unfinished, unfinished_runs
from hlscore.processes import joined, started_as
from hlscore.settings import (
    DEFAULT_RANK,
    DEFAULT_SAMPLES,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)

if TYPE_CHECKING:
    from hlscore.planning.allocation import Allocation
    from hlscore.records import ScoreReport


def rank(
    model: o.Model,
    budget: o.BudgetOption = "0.1",
    score: o.ScoreOption = "hls",
    lora_rank: Annotated[
        int,
        typer.Option(
            "--rank",
            "-r",
            help="LoRA rank that full fine-tuning is compared against.",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = DEFAULT_RANK,
    alpha: o.Alpha = None,
    ranks: o.Ranks = None,
    lock: o.Locks = ...,  # type: ignore[assignment]
    optimizer: m.Optimizer = "adamw",
    master: m.Master = "fp32",
    base: m.Base = "16",
    train_batch: m.TrainBatch = 1,
    train_length: m.TrainLength = 2048,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Hub id, or local .jsonl .json .csv .parquet .arrow file or directory.",
            show_default="built-in probes",
            rich_help_panel=o.DATA_PANEL,
        ),
    ] = None,
    data_config: Annotated[
        str | None,
        typer.Option(
            "--data-config",
            help="Configuration of a hub data set that has several.",
            rich_help_panel=o.DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Split to read.", rich_help_panel=o.DATA_PANEL)
    ] = "train",
    column: Annotated[
        list[str],
        typer.Option(
            "--column",
            help="Map a column, such as prompt=question (roles: text, messages, prompt, "
            "completion; repeatable).",
            rich_help_panel=o.DATA_PANEL,
            default_factory=list,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    samples: Annotated[
        int,
        typer.Option(
            "--samples", help="Examples to draw; 0 means all.", rich_help_panel=o.DATA_PANEL
        ),
    ] = DEFAULT_SAMPLES,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            help="Tokens kept of each example.",
            show_default="1024, or the context if smaller",
            rich_help_panel=o.DATA_PANEL,
        ),
    ] = None,
    revision: o.Revision = None,
    dtype: o.DtypeOption = "auto",
    device: o.Device = "auto",
    load_in: Annotated[
        Literal["4bit", "8bit"] | None,
        typer.Option(
            "--load-in",
            help="Quantize the weights while loading (needs hlscore[quant]).",
            rich_help_panel=o.MODEL_PANEL,
            show_default=False,
        ),
    ] = None,
    device_map: Annotated[
        Literal["auto"] | None,
        typer.Option(
            "--device-map",
            help="auto: over all GPUs, then CPU memory, then disk (needs hlscore[devices]).",
            rich_help_panel=o.MODEL_PANEL,
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        list[str],
        typer.Option(
            "--max-memory",
            help="Memory for weights of one device, such as 0=20GiB or cpu=64GiB (repeatable).",
            rich_help_panel=o.MODEL_PANEL,
            default_factory=list,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    offload_folder: Annotated[
        str | None,
        typer.Option(
            "--offload-folder",
            help="Folder for weights that go to disk.",
            show_default="a temporary one",
            rich_help_panel=o.MODEL_PANEL,
        ),
    ] = None,
    shard: o.Shard = False,
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
    include: o.Include = ...,  # type: ignore[assignment]
    exclude: o.Exclude = ...,  # type: ignore[assignment]
    embeddings: o.Embeddings = False,
    head: o.Head = False,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            help="Examples per pass; changes speed, not scores.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 8,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Recompute activations in the backward pass: less memory, more time.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = True,
    estimator: o.EstimatorOption = "auto",
    sketch_size: o.SketchSize = None,
    passes: o.Passes = 1,
    accumulate_on: o.AccumulateOn = "device",
    svd: Annotated[
        Literal["auto", "full", "randomized"],
        typer.Option(
            "--svd",
            help="How gradients are decomposed; auto is full up to a short side of 512.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = "auto",
    groups: Annotated[
        int,
        typer.Option(
            "--groups",
            help="Probe groups per half that standard errors are told from.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 8,
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap",
            help="Resamples of the groups; 0 turns standard errors off.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of every draw.", rich_help_panel=o.CAPTURE_PANEL)
    ] = 0,
    out: o.Out = None,
    force: o.Force = False,
    save_every: o.SaveEvery = 300,
    resume: o.Resume = False,
    top: o.Top = 15,
    as_json: o.Json = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would happen, load no weights, write nothing.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Score every module of a MODEL and plan which to train in full.

    Runs probe batches forward and backward, writes `scores.parquet` and `plan.json`.

    **Examples**

    `hlscore rank builtin:tiny --budget 0.1`

    `hlscore rank Qwen/Qwen3-0.6B --data train.jsonl --rank 32`

    `hlscore rank ./model --budget 0.1p --column prompt=question --column completion=answer`

    `hlscore rank ./model --estimator sketch --load-in 4bit`

    `torchrun --nproc-per-node 8 -m hlscore rank ./model --data train.jsonl`
    """
    settings = RankSettings(
        model=ModelSettings(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
            load_in=load_in,
            device_map=device_map,
            max_memory=o.parse_memory(max_memory),
            offload_folder=offload_folder,
            shard=shard,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        ),
        data=DataSettings(
            data=data,
            config=data_config,
            split=split,
            samples=samples,
            max_length=max_length,
            columns=o.parse_columns(column),
        ),
        candidates=CandidateSettings(
            include=tuple(include), exclude=tuple(exclude), embeddings=embeddings, head=head
        ),
        capture=CaptureSettings(
            batch_size=batch_size,
            checkpointing=checkpointing,
            estimator=estimator,
            sketch_size=sketch_size,
            passes=passes,
            accumulate_on=accumulate_on,
            svd=svd,
            groups=groups,
            bootstrap=bootstrap,
        ),
        plan=PlanSettings(
            budget=budget,
            score=score,
            rank=lora_rank,
            alpha=alpha,
            ranks=o.parse_ranks(ranks),
            locks=tuple(lock),
            memory=m.memory_settings(optimizer, master, base, train_batch, train_length),
        ),
        seed=seed,
    )
    if dry_run:
        _forecast(settings, as_json=as_json)
    else:
        saved = _Saved(every_seconds=save_every, resume=resume, force=force)
        _rank(settings, out, saved, top=top, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """What is done with stored progress and earlier results."""

    every_seconds: float
    resume: bool
    force: bool


def _rank(
    settings: RankSettings, out: Path | None, saved: _Saved, *, top: int, as_json: bool
) -> None:
    from hlscore.artifacts.files import PLAN_FILE, SCORES_FILE, default_folder, write_files
    from hlscore.planning.allocation import check_plan_settings

    # What can be refused at once is refused before torch is even imported.
    check_plan_settings(settings.plan)
    folder = out or default_folder(settings.model.model)
    if started_as().is_main:
        _check_folder(folder, saved)

    from hlscore.artifacts.plan_file import write_plan
    from hlscore.artifacts.plan_making import make_plan
    from hlscore.artifacts.report import write_report
    from hlscore.views.result import print_rank_json, print_result

    try:
        found = _score(settings, folder, saved)
    except KeyboardInterrupt:
        if unfinished_runs(folder):
            raise Interrupted(
                "Interrupted: no results were written, the progress is kept.",
                hint="The same command with --resume goes on.",
            ) from None
        raise
    if found is None:  # the main process writes and prints
        return
    report, allocation = found
    plan = make_plan(report, allocation)
    paths = write_files(
        folder,
        {
            SCORES_FILE: lambda path: write_report(report, path),
            PLAN_FILE: lambda path: write_plan(plan, path),
        },
    )
    remove_unfinished(folder)
    if as_json:
        print_rank_json(plan, scores=paths[SCORES_FILE], plan_path=paths[PLAN_FILE])
    else:
        print_result(report, allocation, scores=paths[SCORES_FILE], plan=paths[PLAN_FILE], top=top)


def _check_folder(folder: Path, saved: _Saved) -> None:
    from hlscore.artifacts.files import PLAN_FILE, SCORES_FILE, check_folder

    check_folder(folder, (SCORES_FILE, PLAN_FILE), force=saved.force)
    if saved.resume or not unfinished_runs(folder):
        return
    if not saved.force:
        raise UsageError(
            f"'{folder}' holds an unfinished run.",
            hint="Go on with --resume, start anew with --force, or choose another --out.",
        )
    remove_unfinished(folder)


def _score(
    settings: RankSettings, folder: Path, saved: _Saved
) -> tuple[ScoreReport, Allocation] | None:
    from hlscore.views.progress import status, terminal_progress

    with status("loading torch and transformers"):
        from hlscore.flow import Storage, score_model
        from hlscore.inputs.examples import read_examples
        from hlscore.inputs.model import load_model
        from hlscore.inputs.sharding import load_sharded
    with status("reading probe data"):
        examples = read_examples(settings.data, seed=settings.seed)
    stored = saved.resume or saved.every_seconds > 0
    every = saved.every_seconds or float("inf")
    storage = Storage(folder=folder, every_seconds=every, resume=saved.resume) if stored else None
    with joined() as processes:
        with status(f"loading {settings.model.model}"):
            loaded = (
                load_sharded(settings.model, processes)
                if settings.model.shard
                else load_model(settings.model)
            )
        with terminal_progress() as progress:
            return score_model(
                loaded.model,
                loaded.tokenizer,
                loaded.identity,
                examples,
                settings,
                progress,
                processes=processes,
                storage=storage,
            )


def _forecast(settings: RankSettings, *, as_json: bool) -> None:
    from hlscore.planning.allocation import check_plan_settings
    from hlscore.views.progress import status

    check_plan_settings(settings.plan)
    with status("loading torch and transformers"):
        from hlscore.flow import forecast
        from hlscore.inputs.examples import read_examples
        from hlscore.inputs.model import load_shape, load_tokenizer, resolve_device
        from hlscore.views.forecast import print_forecast
    device = resolve_device(settings.model.device)
    with status("reading configuration and probe data"):
        model, files = load_shape(settings.model)
        tokenizer = load_tokenizer(files, settings.model)
        examples = read_examples(settings.data, seed=settings.seed)
        found = forecast(model, tokenizer, examples, settings, device)
    print_forecast(found, settings, device=str(device), as_json=as_json)
