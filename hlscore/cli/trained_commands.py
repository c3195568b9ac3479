"""Commands for a finished training: `hlscore audit`, `extract-lora` and `merge`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hlscore.artifacts.files import check_folder, default_folder, write_files
from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.inputs.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hlscore.settings import (
    DEFAULT_RANK,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
    option,
)
from hlscore.views.progress import status, terminal_progress

if TYPE_CHECKING:
    from hlscore.inputs.trained import Adapter

_AUDIT_FILE = "audit.parquet"

_RUN = option(MISSING, "A trained PEFT adapter: directory or hub id.", argument=True)
_OUT = option(MISSING, "Folder to write.", short="o")
_FILES = ("model", "revision", "trust_remote_code")
_BASE = {
    "help": "Base model that the training started from: hub id or directory.",
    "argument": False,
}
_Base = Annotated[ModelSettings, o.Options(only=(*_FILES, "device"), model=_BASE)]
_DATA = {"help": "Also load the models and report the loss on this data, before and after."}
_HeldOut = Annotated[
    DataSettings,
    o.Options(
        only=("data", "columns", "samples", "max_length"),
        **o.SUPERVISED | {"data": _DATA | {"default": ""}},
    ),
]


@o.command()
def audit(
    base: _Base,
    held_out: _HeldOut,
    candidates: Annotated[CandidateSettings, o.Options()],
    ranked: Annotated[
        o.Given,
        o.Options(
            PlanSettings,
            only=("rank",),
            rank={
                "help": "LoRA rank beyond which energy is counted.",
                "default": f"the plan's, or {DEFAULT_RANK}",
            },
        ),
    ],
    run: str = option(
        MISSING, "A PEFT adapter or a fine-tuned model: directory or hub id.", argument=True
    ),
    plan: Path | None = option(
        None, "The plan.json of the training, to compare with what happened.", PlanSettings.panel
    ),
    out: Path | None = option(
        None,
        "Report to write, for `hlscore plan` and `show`.",
        short="o",
        default=f"hlscore-out/<run>/{_AUDIT_FILE}",
    ),
    force: bool = o.FORCE,
    top: int = o.TOP,
    as_json: bool = o.JSON,
) -> None:
    """Say how far a training moved each module, and how much rank that took.

    Reads safetensors files tensor by tensor: no model is loaded.

    **Examples**

    - `hlscore audit ./hybrid-run --model Qwen/Qwen3-0.6B --plan plan.json`
    - `hlscore audit ./full-run --model ./base --json`
    - `hlscore audit ./hybrid-run --model ./base --data general.jsonl`
    """
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.artifacts.report import write_report

    target = out or default_folder(run) / _AUDIT_FILE
    planned = None if plan is None else read_plan(plan)
    rank = ranked.get("rank") or (DEFAULT_RANK if planned is None else planned.lora.rank)
    settings = RankSettings(
        model=base,
        candidates=candidates,
        capture=CaptureSettings(movement="update"),
        # A budget that always fits: the audit itself selects nothing.
        plan=PlanSettings(budget="1.0", rank=rank),
        updates=(run,),
    )
    check_folder(target.parent, (target.name,), force=force)
    with status("loading torch and transformers"):
        from hlscore.flow.audit import audit_of
        from hlscore.flow.updates import score_updates
        from hlscore.views.trained import print_audit
    with terminal_progress() as progress:
        result, movements = score_updates(settings, progress)
    losses = _held_out_losses({"after": run}, base, held_out)
    if planned is not None and movements.keys().isdisjoint(item.module for item in planned.modules):
        raise UsageError(
            f"'{plan}' plans none of the modules of '{base.model}'.",
            hint="Give the run's own plan.",
        )
    found = audit_of(result.report, movements, planned)
    write_files(target.parent, {target.name: lambda path: write_report(result.report, path)})
    print_audit(found, target, plan, losses, top=top, as_json=as_json)


@o.command()
def extract_lora(
    base: _Base,
    held_out: _HeldOut,
    run: str = _RUN,
    out: Path = _OUT,
    max_rank: int = option(
        64,
        "Largest LoRA rank; vLLM loads up to 512.",
        PlanSettings.panel,
        low=1,
        high=512,
        hint="Use 1 to 512: vLLM loads no more.",
    ),
    max_error: float | None = option(
        None,
        "Largest relative error of a module's update: takes the smallest rank within it.",
        PlanSettings.panel,
        above=0,
        below=1,
        hint="Use a share, such as 0.05.",
        default="none: the largest rank",
    ),
    force: bool = o.FORCE,
    top: int = o.TOP,
    as_json: bool = o.JSON,
) -> None:
    """Turn a hybrid adapter into one plain LoRA adapter that inference engines load.

    Modules trained in full become LoRA by truncated singular value decomposition of their update;
    LoRA is kept as it is.

    **Examples**

    - `hlscore extract-lora ./hybrid-run --model Qwen/Qwen3-0.6B -o ./plain --max-rank 64`
    - `hlscore extract-lora ./hybrid-run --model ./base -o ./plain --max-rank 256 --max-error 0.05`
    """
    check_folder(out, (ADAPTER_CONFIG, ADAPTER_WEIGHTS), force=force)
    adapter = _opened(run, base)
    with status("loading torch"):
        from safetensors.torch import save_file

        from hlscore.inputs.model import resolve_device
        from hlscore.serving import plain_adapter
        from hlscore.views.trained import print_plain_adapter
    with terminal_progress() as progress:
        progress.start("decomposing", len(adapter.parameters), "modules")
        found = plain_adapter(
            adapter, max_rank=max_rank, max_error=max_error,
            device=resolve_device(base.device), advance=progress.advance,
        )  # fmt: skip
    write_files(out, {
        ADAPTER_CONFIG: json.dumps(found.config, indent=2, sort_keys=True) + "\n",
        ADAPTER_WEIGHTS: lambda path: save_file(found.tensors, path, metadata={"format": "pt"}),
    })  # fmt: skip
    losses = _held_out_losses({"trained": run, "as plain LoRA": str(out)}, base, held_out)
    print_plain_adapter(found, losses, base.model, out, top=top, as_json=as_json)


@o.command()
def merge(
    base: Annotated[ModelSettings, o.Options(only=_FILES, model=_BASE)],
    run: str = _RUN,
    out: Path = _OUT,
    force: bool = o.FORCE,
    as_json: bool = o.JSON,
) -> None:
    """Write the base model with a trained adapter merged into it, tensor by tensor.

    Needs the memory of the largest tensor, not of the model; files and dtypes are the base's.

    **Examples**

    - `hlscore merge ./hybrid-run --model Qwen/Qwen3-0.6B -o ./merged`
    """
    check_folder(out, ("config.json", "model.safetensors"), force=force)
    adapter = _opened(run, replace(base, device="cpu"))
    if out.resolve() in (adapter.base.directory.resolve(), adapter.folder.resolve()):
        raise UsageError(f"--out '{out}' is the base or the adapter.", hint="Give another folder.")
    from hlscore.serving import merge_writers
    from hlscore.views.trained import print_merged

    changed = len(adapter.parameters)
    with terminal_progress() as progress:
        progress.start("merging", changed, "tensors")
        writers = merge_writers(adapter, progress.advance)
        check_folder(out, tuple(writers), force=force)
        paths = write_files(out, writers)
    print_merged(out, changed, paths, as_json=as_json)


def _opened(run: str, base: ModelSettings) -> Adapter:
    """The adapter of a training beside the weights that it was trained on."""
    with status("loading torch and transformers"):
        from hlscore.inputs.stored_weights import StoredWeights
        from hlscore.inputs.trained import Adapter, open_trained
    trained = open_trained(run, StoredWeights(base), base)
    if not isinstance(trained, Adapter):
        raise UsageError(
            f"'{run}' is a whole model: it can be served as it is.",
            hint="Name a folder with adapter_config.json.",
        )
    return trained


def _held_out_losses(
    runs: dict[str, str], base: ModelSettings, held_out: DataSettings
) -> Mapping[str, object] | None:
    """Losses of a base model and of trainings of it on held-out data; `None` if none is given."""
    if held_out.data is None:
        return None
    from hlscore.inputs.placement import quiet_libraries

    with status("measuring the loss"), quiet_libraries():
        from hlscore.flow.audit import held_out_losses

        return held_out_losses(base, held_out, runs)
