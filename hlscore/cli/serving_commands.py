"""`hlscore extract-lora` and `hlscore merge`: a trained adapter, made ready for serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hlscore.cli import options as o
from hlscore.cli.audit_command import HeldOut, Loading, held_out_losses_of
from hlscore.errors import UsageError
from hlscore.settings import PLAN_PANEL, ModelSettings, Option

if TYPE_CHECKING:
    from hlscore.inputs.adapter import Adapter
    from hlscore.inputs.stored_weights import StoredWeights

_Run = Annotated[str, Option("A trained PEFT adapter: directory or hub id.", argument=True)]
_Out = Annotated[Path, Option("Folder to write.", o.OUTPUT_PANEL, short="o")]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@o.takes_settings
def extract_lora(
    run: _Run,
    model: o.BaseModel,
    out: _Out,
    loading: Loading,
    held_out: HeldOut,
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
    from hlscore.views.serving import print_plain_adapter

    check_folder(out, (_CONFIG, _WEIGHTS), force=force)
    settings = ModelSettings(model=model, **loading)
    adapter, base = _opened(run, settings)
    with status("loading torch"):
        from safetensors.torch import save_file

        from hlscore.inputs.model import resolve_device
        from hlscore.serving.plain_adapter import plain_adapter
    with terminal_progress() as progress:
        progress.start("decomposing", len({*adapter.parameters, *adapter.copies}), "modules")
        found = plain_adapter(
            adapter, base, max_rank=max_rank, max_error=max_error,
            device=resolve_device(settings.device), advance=progress.advance,
        )  # fmt: skip
    config = found.config | {"base_model_name_or_path": model}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_files(
        out,
        {
            _CONFIG: text,
            _WEIGHTS: lambda path: save_file(found.tensors, path, metadata={"format": "pt"}),
        },
    )
    losses = held_out_losses_of({"trained": run, "as plain LoRA": str(out)}, settings, held_out)
    print_plain_adapter(found, losses, model, out, top=top, as_json=as_json)


@o.takes_settings
def merge(
    run: _Run,
    model: o.BaseModel,
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
    from hlscore.views.serving import print_merged

    check_folder(out, ("config.json", "model.safetensors"), force=force)
    adapter, base = _opened(run, ModelSettings(model=model, device="cpu", **loading))
    if out.resolve() in (base.directory.resolve(), adapter.folder.resolve()):
        raise UsageError(f"--out '{out}' is the base or the adapter.", hint="Give another folder.")
    from hlscore.serving.merge_files import merge_writers

    changed = len({*adapter.parameters, *adapter.copies})
    with terminal_progress() as progress:
        progress.start("merging", changed, "tensors")
        writers = merge_writers(adapter, base, progress.advance)
        check_folder(out, tuple(writers), force=force)
        paths = write_files(out, writers)
    print_merged(out, changed, paths, as_json=as_json)


def _opened(run: str, settings: ModelSettings) -> tuple[Adapter, StoredWeights]:
    from hlscore.views.progress import status

    with status("loading torch and transformers"):
        from hlscore.inputs.adapter import Adapter
        from hlscore.inputs.stored_weights import StoredWeights
        from hlscore.inputs.trained import open_trained
    base = StoredWeights(settings)
    trained = open_trained(run, base, settings)
    if not isinstance(trained, Adapter):
        raise UsageError(
            f"'{run}' is a whole model: it can be served as it is.",
            hint="Name a folder with adapter_config.json.",
        )
    return trained, base
