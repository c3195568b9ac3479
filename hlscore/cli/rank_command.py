"""`hlscore rank`: the whole flow, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hlscore.cli import options as o
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
            help="Probe groups per half that the bootstrap draws from.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 8,
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap",
            help="Bootstrap resamples; 0 turns standard errors off.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of every draw.", rich_help_panel=o.CAPTURE_PANEL)
    ] = 0,
    out: o.Out = None,
    force: o.Force = False,
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
    """
    settings = RankSettings(
        model=ModelSettings(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
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
            svd=svd,
            groups=groups,
            bootstrap=bootstrap,
        ),
        plan=PlanSettings(budget=budget, score=score, rank=lora_rank, alpha=alpha),
        seed=seed,
    )
    if dry_run:
        _forecast(settings, as_json=as_json)
    else:
        _rank(settings, out, force=force, top=top, as_json=as_json)


def _rank(
    settings: RankSettings, out: Path | None, *, force: bool, top: int, as_json: bool
) -> None:
    from hlscore.artifacts.files import (
        PLAN_FILE,
        SCORES_FILE,
        check_folder,
        default_folder,
        write_files,
    )
    from hlscore.planning.allocation import check_plan_settings

    # What can be refused at once is refused before torch is even imported.
    check_plan_settings(settings.plan)
    folder = out or default_folder(settings.model.model)
    check_folder(folder, (SCORES_FILE, PLAN_FILE), force=force)

    from hlscore.artifacts.plan import make_plan, write_plan
    from hlscore.artifacts.report import write_report
    from hlscore.views.progress import status, terminal_progress
    from hlscore.views.result import print_rank_json, print_result

    with status("loading torch and transformers"):
        from hlscore.flow import score_model
        from hlscore.inputs.examples import read_examples
        from hlscore.inputs.model import load_model
    with status("reading probe data"):
        examples = read_examples(settings.data, seed=settings.seed)
    with status(f"loading {settings.model.model}"):
        loaded = load_model(settings.model)
    with terminal_progress() as progress:
        report, allocation = score_model(
            loaded.model, loaded.tokenizer, loaded.identity, examples, settings, progress
        )
    del loaded
    plan = make_plan(report, allocation)
    paths = write_files(
        folder,
        {
            SCORES_FILE: lambda path: write_report(report, path),
            PLAN_FILE: lambda path: write_plan(plan, path),
        },
    )
    if as_json:
        print_rank_json(plan, scores=paths[SCORES_FILE], plan_path=paths[PLAN_FILE])
    else:
        print_result(report, allocation, scores=paths[SCORES_FILE], plan=paths[PLAN_FILE], top=top)


def _forecast(settings: RankSettings, *, as_json: bool) -> None:
    from hlscore.planning.allocation import check_plan_settings
    from hlscore.views.progress import status

    check_plan_settings(settings.plan)
    with status("loading torch and transformers"):
        from hlscore.flow import forecast
        from hlscore.inputs.examples import read_examples
        from hlscore.inputs.model import load_shape, load_tokenizer, planned_dtype, resolve_device
        from hlscore.views.forecast import print_forecast
    device = resolve_device(settings.model.device)
    with status("reading configuration and probe data"):
        model, files = load_shape(settings.model)
        tokenizer = load_tokenizer(files, settings.model)
        examples = read_examples(settings.data, seed=settings.seed)
        found = forecast(model, tokenizer, examples, settings, planned_dtype(model, settings.model))
    print_forecast(found, settings, device=str(device), as_json=as_json)
