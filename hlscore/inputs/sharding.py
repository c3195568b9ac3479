"""Weights that several processes share: each holds a part of every one (FSDP2)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedModel

from hlscore.errors import ModelError, UsageError
from hlscore.inputs.model import (
    LoadedModel,
    load_model,
    load_shape,
    load_tokenizer,
    planned_dtype,
    resolve_device,
)
from hlscore.inputs.modules import decoder_blocks
from hlscore.inputs.placement import out_of_memory
from hlscore.processes import Processes
from hlscore.settings import Dtype, ModelSettings


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether weights of a model are spread over several processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def load_sharded(settings: ModelSettings, processes: Processes) -> LoadedModel:
    """Load a model whose weights no single device holds.

    The main process reads the model into the memory of its host, once; each process keeps its
    part of every weight on its device. Blocks are gathered one at a time when they are run.
    """
    if processes.size == 1:
        raise UsageError(
            "--shard spreads the weights over several processes, and there is one.",
            hint="Start it with torchrun --nproc-per-node N -m hlscore rank ...",
        )
    device = resolve_device(settings.device)
    model, files = load_shape(settings)
    check_blocks_share_nothing(model, settings.model)
    model = model.to(planned_dtype(model.config, settings))
    tokenizer = load_tokenizer(files, settings)
    whole = None
    if processes.is_main:
        # Not `auto`: what a CPU avoids is no matter of the devices that compute.
        dtype = cast("Dtype", str(planned_dtype(model.config, settings)).removeprefix("torch."))
        whole = load_model(replace(settings, device="cpu", shard=False, dtype=dtype))
    identity = processes.gather(None if whole is None else whole.identity)[0]
    if identity is None:
        raise ModelError(f"The main process could not load '{settings.model}'.")
    try:
        _spread(model, None if whole is None else whole.model, device)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, str(device)) from error
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, identity=identity)


def check_blocks_share_nothing(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose blocks hold one parameter together: each block is gathered alone."""
    owners: dict[int, str] = {}
    for block in decoder_blocks(model):
        for leaf, parameter in model.get_submodule(block).named_parameters():
            owner = owners.setdefault(id(parameter), block)
            if owner != block:
                raise ModelError(
                    f"'{name}' cannot be sharded: {owner} and {block} share {leaf}.",
                    hint="Use --device-map auto, or one process with --estimator sketch.",
                )


def _spread(model: PreTrainedModel, whole: PreTrainedModel | None, device: torch.device) -> None:
    """Give each process its part of the weights that the main one holds."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for name in decoder_blocks(model):
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Buffers that no checkpoint holds, such as rotary frequencies, are sent one by one.
    sources = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        source = sources.get(name, torch.empty(0)) if whole is not None else None
        value = torch.empty_like(buffer, device=device) if source is None else source.to(device)
        torch.distributed.broadcast(value, src=0)
        model.get_submodule(owner)._buffers[leaf] = value
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, {} if whole is None else whole.state_dict(), options=options)
    model.tie_weights(recompute_mapping=False)  # what the files tie, not what config.json says
