"""`hlscore audit`: what a finished training did to each module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import (
    DEFAULT_RANK,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)

AUDIT_FILE = "audit.parquet"
HeldOutData = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Also load the models and report the loss on this data, before and after.",
        rich_help_panel=o.DATA_PANEL,
        show_default=False,
    ),
]
HeldOutSamples = Annotated[
    int,
    typer.Option("--samples", help="Examples to draw; 0 means all.", rich_help_panel=o.DATA_PANEL),
]
BaseModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="Base model that the training started from: hub id or directory.",
        rich_help_panel=o.MODEL_PANEL,
        show_default=False,
    ),
]


def audit(
    run: Annotated[
        str,
        typer.Argument(
            help="A PEFT adapter or a fine-tuned model: directory or hub id.", show_default=False
        ),
    ],
    model: BaseModel,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="The plan.json of the training, to hold against what happened.",
            rich_help_panel=o.PLAN_PANEL,
            show_default=False,
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            "-r",
            help="LoRA rank beyond which energy is counted.",
            show_default=f"the plan's, or {DEFAULT_RANK}",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = None,
    data: HeldOutData = None,
    column: o.Columns = ...,  # type: ignore[assignment]
    samples: HeldOutSamples = 256,
    max_length: o.MaxLength = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    include: o.Include = ...,  # type: ignore[assignment]
    exclude: o.Exclude = ...,  # type: ignore[assignment]
    embeddings: o.Embeddings = False,
    head: o.Head = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Report to write, for `hlscore plan` and `show`.",
            show_default=f"hlscore-out/<run>/{AUDIT_FILE}",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = None,
    force: o.Force = False,
    top: o.Top = 15,
    as_json: o.Json = False,
) -> None:
    """Say how far a training moved each module, and how much rank that took.

    Reads safetensors files tensor by tensor: no model is loaded.

    **Examples**

    `hlscore audit ./hybrid-run --model Qwen/Qwen3-0.6B --plan plan.json`

    `hlscore audit ./full-run --model ./base --json`

    `hlscore audit ./hybrid-run --model ./base --data general.jsonl`
    """
    from hlscore.artifacts.files import check_folder, default_folder, write_files
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.artifacts.report import write_report
    from hlscore.views.progress import status, terminal_progress

    target = out or default_folder(run) / AUDIT_FILE
    planned = None if plan is None else (read_plan(plan), plan)
    if lora_rank is None:
        lora_rank = DEFAULT_RANK if planned is None else planned[0].lora.rank
    settings = RankSettings(
        model=ModelSettings(
            model=model, revision=revision, device=device, trust_remote_code=trust_remote_code
        ),
        candidates=CandidateSettings(
            include=tuple(include), exclude=tuple(exclude), embeddings=embeddings, head=head
        ),
        capture=CaptureSettings(movement="update"),
        # A budget that always fits: the audit itself chooses nothing.
        plan=PlanSettings(budget="1.0", rank=lora_rank),
        updates=(run,),
    )
    check_folder(target.parent, (target.name,), force=force)
    with status("loading torch and transformers"):
        from hlscore.flow import score_updates
        from hlscore.views.audit import audit_of, print_audit, print_audit_json
    with terminal_progress() as progress:
        found = score_updates(settings, progress)
    held_out = held_out_losses_of(
        {"after": run}, settings.model, data, column, samples=samples, max_length=max_length
    )
    modules = {row.module for row in found.report.candidates}
    if planned is not None and not modules & {item.module for item in planned[0].modules}:
        raise UsageError(
            f"'{plan}' plans none of the modules of '{model}'.", hint="Give the run's own plan."
        )
    seen = audit_of(found.report, found.movements, target, planned)
    write_files(target.parent, {target.name: lambda path: write_report(found.report, path)})
    if as_json:
        print_audit_json(seen, held_out=held_out)
    else:
        print_audit(seen, top=top, held_out=held_out)


def held_out_losses_of(
    runs: dict[str, str],
    model: ModelSettings,
    data: str | None,
    column: list[str],
    *,
    samples: int,
    max_length: int | None,
) -> dict[str, object] | None:
    """Measure a base model and trainings of it on held-out data, where some is given."""
    if data is None:
        return None
    from dataclasses import asdict

    from hlscore.inputs.placement import quiet_libraries
    from hlscore.views.progress import status

    read = DataSettings(
        data=data, columns=o.parse_columns(column), samples=samples, max_length=max_length
    )
    with status("measuring the loss"), quiet_libraries():
        from hlscore.validation.held_out import held_out_losses

        return asdict(held_out_losses(model, read, runs))
