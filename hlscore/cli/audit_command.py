"""`hlscore audit`: what a finished training did to each module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import (
    DEFAULT_RANK,
    DEFAULT_SAMPLES,
    PLAN_PANEL,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    Option,
    PlanSettings,
    RankSettings,
)

AUDIT_FILE = "audit.parquet"
# How the base is loaded, and the data that a loss is measured on.
Loading = Annotated[
    o.Given, o.Options(ModelSettings, only=("revision", "device", "trust_remote_code"))
]
HeldOut = Annotated[
    o.Given,
    o.Options(
        DataSettings,
        only=("data", "columns", "samples", "max_length"),
        defaults={"data": "", "samples": str(DEFAULT_SAMPLES)},
        helps={
            "data": "Also load the models and report the loss on this data, before and after.",
            "samples": "Examples to draw; 0 means all.",
        },
    ),
]


@o.takes_settings
def audit(
    run: Annotated[
        str, Option("A PEFT adapter or a fine-tuned model: directory or hub id.", argument=True)
    ],
    model: o.BaseModel,
    loading: Loading,
    held_out: HeldOut,
    candidates: Annotated[CandidateSettings, o.Options()],
    ranked: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("rank",),
            defaults={"rank": f"the plan's, or {DEFAULT_RANK}"},
            helps={"rank": "LoRA rank beyond which energy is counted."},
        ),
    ],
    plan: Annotated[
        Path | None,
        Option("The plan.json of the training, to compare with what happened.", PLAN_PANEL),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "Report to write, for `hlscore plan` and `show`.",
            o.OUTPUT_PANEL,
            short="o",
            default=f"hlscore-out/<run>/{AUDIT_FILE}",
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
    rank = ranked.get("rank") or (DEFAULT_RANK if planned is None else planned[0].lora.rank)
    settings = RankSettings(
        model=ModelSettings(model=model, **loading),
        candidates=candidates,
        capture=CaptureSettings(movement="update"),
        # A budget that always fits: the audit itself selects nothing.
        plan=PlanSettings(budget="1.0", rank=rank),
        updates=(run,),
    )
    check_folder(target.parent, (target.name,), force=force)
    with status("loading torch and transformers"):
        from hlscore.flow import score_updates
        from hlscore.views.audit import audit_of, print_audit
    with terminal_progress() as progress:
        result, movements = score_updates(settings, progress)
    losses = held_out_losses_of({"after": run}, settings.model, held_out)
    modules = {row.module for row in result.report.candidates}
    if planned is not None and not modules & {item.module for item in planned[0].modules}:
        raise UsageError(
            f"'{plan}' plans none of the modules of '{model}'.", hint="Give the run's own plan."
        )
    seen = audit_of(result.report, movements, target, planned)
    write_files(target.parent, {target.name: lambda path: write_report(result.report, path)})
    print_audit(seen, top=top, held_out=losses, as_json=as_json)


def held_out_losses_of(
    runs: dict[str, str], model: ModelSettings, held_out: o.Given
) -> dict[str, object] | None:
    """Losses of a base model and of trainings of it on held-out data; `None` if none is given."""
    if "data" not in held_out:
        return None
    from hlscore.inputs.placement import quiet_libraries
    from hlscore.views.progress import status

    data = DataSettings(**held_out)
    with status("measuring the loss"), quiet_libraries():
        from hlscore.validation.held_out import held_out_losses

        return held_out_losses(model, data, runs)
