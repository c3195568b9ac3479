"""Commands for a finished training: `hlscore audit`, `extract-lora` and `merge`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.inputs.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hlscore.settings import (
    DEFAULT_RANK,
    DEFAULT_SAMPLES,
    MODEL_PANEL,
    PLAN_PANEL,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    Option,
    PlanSettings,
    RankSettings,
)

if TYPE_CHECKING:
    from hlscore.inputs.stored_weights import StoredWeights
    from hlscore.inputs.trained import Adapter

_AUDIT_FILE = "audit.parquet"

_Base = Annotated[
    str, Option("Base model that the training started from: hub id or directory.", MODEL_PANEL)
]
_Run = Annotated[str, Option("A trained PEFT adapter: directory or hub id.", argument=True)]
_Out = Annotated[Path, Option("Folder to write.", short="o")]
_Loading = Annotated[
    o.Given, o.Options(ModelSettings, only=("revision", "device", "trust_remote_code"))
]
_HeldOut = Annotated[
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
    model: _Base,
    loading: _Loading,
    held_out: _HeldOut,
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
            short="o",
            default=f"hlscore-out/<run>/{_AUDIT_FILE}",
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

    target = out or default_folder(run) / _AUDIT_FILE
    planned = None if plan is None else read_plan(plan)
    rank = ranked.get("rank") or (DEFAULT_RANK if planned is None else planned.lora.rank)
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
        from hlscore.flow import audit_of, score_updates
        from hlscore.views.trained import print_audit
    with terminal_progress() as progress:
        result, movements = score_updates(settings, progress)
    losses = _held_out_losses({"after": run}, settings.model, held_out)
    if planned is not None and movements.keys().isdisjoint(item.module for item in planned.modules):
        raise UsageError(
            f"'{plan}' plans none of the modules of '{model}'.", hint="Give the run's own plan."
        )
    found = audit_of(result.report, movements, planned)
    write_files(target.parent, {target.name: lambda path: write_report(result.report, path)})
    print_audit(found, target, plan, losses, top=top, as_json=as_json)


@o.takes_settings
def extract_lora(
    run: _Run,
    model: _Base,
    out: _Out,
    loading: _Loading,
    held_out: _HeldOut,
    max_rank: Annotated[
        int,
        Option(
            "Largest LoRA rank; vLLM loads up to 512.",
            PLAN_PANEL,
            low=1,
            high=512,
            hint="Use 1 to 512: vLLM loads no more.",
        ),
    ] = 64,
    max_error: Annotated[
        float | None,
        Option(
            "Largest relative error of a module's update: takes the smallest rank within it.",
            PLAN_PANEL,
            above=0,
            below=1,
            hint="Use a share, such as 0.05.",
            default="none: the largest rank",
        ),
    ] = None,
    force: o.Force = False,
    top: o.Top = 15,
    as_json: o.Json = False,
) -> None:
    """Turn a hybrid adapter into one plain LoRA adapter that inference engines load.

    Modules trained in full become LoRA by truncated singular value decomposition of their update;
    LoRA is kept as it is.

    **Examples**

    `hlscore extract-lora ./hybrid-run --model Qwen/Qwen3-0.6B -o ./plain --max-rank 64`

    `hlscore extract-lora ./hybrid-run --model ./base -o ./plain --max-rank 256 --max-error 0.05`
    """
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.views.progress import status, terminal_progress

    check_folder(out, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), force=force)
    settings = ModelSettings(model=model, **loading)
    adapter, base = _opened(run, settings)
    with status("loading torch"):
        from safetensors.torch import save_file

        from hlscore.inputs.model import resolve_device
        from hlscore.serving.plain_adapter import plain_adapter
        from hlscore.views.trained import print_plain_adapter
    with terminal_progress() as progress:
        progress.start("decomposing", len(adapter.parameters), "modules")
        found = plain_adapter(
            adapter, base, max_rank=max_rank, max_error=max_error,
            device=resolve_device(settings.device), advance=progress.advance,
        )  # fmt: skip
    config = found.config | {"base_model_name_or_path": model}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_files(out, {
        ADAPTER_CONFIG: text,
        ADAPTER_WEIGHTS: lambda path: save_file(found.tensors, path, metadata={"format": "pt"}),
    })  # fmt: skip
    losses = _held_out_losses({"trained": run, "as plain LoRA": str(out)}, settings, held_out)
    print_plain_adapter(found, losses, model, out, top=top, as_json=as_json)


@o.takes_settings
def merge(
    run: _Run,
    model: _Base,
    out: _Out,
    loading: Annotated[o.Given, o.Options(ModelSettings, only=("revision", "trust_remote_code"))],
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Write the base model with a trained adapter merged into it, tensor by tensor.

    Needs the memory of the largest tensor, not of the model; files and dtypes are the base's.

    **Examples**

    `hlscore merge ./hybrid-run --model Qwen/Qwen3-0.6B -o ./merged`
    """
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.views.progress import terminal_progress

    check_folder(out, ("config.json", "model.safetensors"), force=force)
    adapter, base = _opened(run, ModelSettings(model=model, device="cpu", **loading))
    if out.resolve() in (base.directory.resolve(), adapter.folder.resolve()):
        raise UsageError(f"--out '{out}' is the base or the adapter.", hint="Give another folder.")
    from hlscore.serving.merge_files import merge_writers
    from hlscore.views.trained import print_merged

    changed = len(adapter.parameters)
    with terminal_progress() as progress:
        progress.start("merging", changed, "tensors")
        writers = merge_writers(adapter, base, progress.advance)
        check_folder(out, tuple(writers), force=force)
        paths = write_files(out, writers)
    print_merged(out, changed, paths, as_json=as_json)


def _opened(run: str, settings: ModelSettings) -> tuple[Adapter, StoredWeights]:
    """The adapter of a training and the weights that it was trained on."""
    from hlscore.views.progress import status

    with status("loading torch and transformers"):
        from hlscore.inputs.stored_weights import StoredWeights
        from hlscore.inputs.trained import Adapter, open_trained
    base = StoredWeights(settings)
    trained = open_trained(run, base, settings)
    if not isinstance(trained, Adapter):
        raise UsageError(
            f"'{run}' is a whole model: it can be served as it is.",
            hint="Name a folder with adapter_config.json.",
        )
    return trained, base


def _held_out_losses(
    runs: dict[str, str], model: ModelSettings, held_out: o.Given
) -> Mapping[str, object] | None:
    """Losses of a base model and of trainings of it on held-out data; `None` if none is given."""
    if "data" not in held_out:
        return None
    from hlscore.inputs.placement import quiet_libraries
    from hlscore.views.progress import status

    data = DataSettings(**held_out)
    with status("measuring the loss"), quiet_libraries():
        from hlscore.flow.audit import held_out_losses

        return held_out_losses(model, data, runs)
