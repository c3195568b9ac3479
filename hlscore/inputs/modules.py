"""Candidate modules: found by type and place in the module tree, never by a list of names.

A candidate is a linear map inside a block of the language decoder: a linear layer, quantized or
not, a `Conv1D`, a router whose matrix sits on a module of its own, or a fused 3-D tensor of
experts. Every other weight of two or more dimensions is recorded too, with the reason why it is
left out.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.errors import ModelError, UsageError
from hlscore.inputs.weights import is_packed_linear, is_plain, weight_ids
from hlscore.records import Candidate, Form, LeftOut
from hlscore.settings import CandidateSettings

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)

ONLY_DECODERS = "hlscore ranks decoder-only (causal) language models."


def find_modules(
    model: PreTrainedModel, settings: CandidateSettings = CandidateSettings()
) -> tuple[Candidate, ...]:
    """Every weight of two or more dimensions, as a candidate or with the reason why it is not.

    Works on the meta device: only names, types and shapes are read. A model gives the same
    candidates whether it is quantized or not, but for their field `quantized`.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        name = type(model).__name__
        raise ModelError(f"{name} is an encoder-decoder model.", hint=ONLY_DECODERS)
    (decoder, blocks), ids = _decoder(model), weight_ids(model)
    # A tied weight is input embedding and output head at once.
    asked: dict[int, dict[LeftOut, bool]] = {}
    embeddings: tuple[tuple[nn.Module, LeftOut, bool], ...] = (
        (model.get_input_embeddings(), "input_embedding", settings.embeddings),
        (model.get_output_embeddings(), "output_head", settings.head),
    )
    for name, module in model.named_modules():
        for embedding, role, wanted in embeddings:
            if module is embedding:
                place = ids.get(f"{name}.weight", id(module))
                asked.setdefault(place, {})[role] = wanted
    found: list[Candidate] = []
    seen: dict[int, str] = {}
    for module_name, module in model.named_modules():
        weights: dict[str, nn.Parameter | None] = {
            leaf: parameter
            for leaf, parameter in module.named_parameters(recurse=False)
            if parameter.dim() >= 2
        }
        if is_packed_linear(module):  # its one weight need not be a parameter
            weights = {"weight": module._parameters.get("weight")}
        for leaf, parameter in weights.items():
            item = _describe(module_name, module, leaf, parameter, blocks)
            place = ids.get(item.parameter, id(module))
            left_out: LeftOut = ""
            if place in seen:
                left_out = "tied"
            elif place in asked:
                left_out = "" if any(asked[place].values()) else min(asked[place])
            elif item.layer is None:
                inside = not decoder or item.module.startswith(f"{decoder}.")
                left_out = "outside_blocks" if inside else "outside_decoder"
            else:
                left_out = _no_linear_map(module, leaf, parameter)
            found.append(replace(item, left_out=left_out, tied_to=seen.get(place, "")))
            seen.setdefault(place, item.module)

    # What `--include` and `--exclude` leave.
    names = [item.module for item in found if not item.skipped]
    if not names:
        why = "no linear map lies in a list of decoder blocks"
        if any(item.left_out == "quantized" for item in found):
            why = "its weights are quantized in an unknown layout"
        raise ModelError(
            f"{type(model).__name__} has no candidate modules: {why}.",
            hint="hlscore ranks linear maps inside the repeated blocks of a language decoder.",
        )
    included: set[str] = set() if settings.include else set(names)
    excluded: set[str] = set()
    for option, globs, matched in (
        ("--include", settings.include, included), ("--exclude", settings.exclude, excluded),
    ):  # fmt: skip
        for glob in globs:
            hits = fnmatch.filter(names, glob)
            if not hits:
                raise UsageError(
                    f"{option} '{glob}' matches none of the candidate modules.",
                    hint=f"Globs are matched against full names such as {names[0]}.",
                )
            matched.update(hits)
    if included <= excluded:
        given = "--include and --exclude together leave" if settings.include else "--exclude leaves"
        raise UsageError(
            f"{given} no candidate module.", hint="hlscore modules MODEL lists the candidates."
        )
    dropped: dict[str, LeftOut] = {
        name: "excluded" if name in included else "not_included"
        for name in names
        if name not in included or name in excluded
    }
    return tuple(replace(item, left_out=dropped.get(item.module, item.left_out)) for item in found)


def candidates_of(modules: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Keep the modules that can be ranked."""
    return tuple(item for item in modules if not item.skipped)


def decoder_blocks(model: PreTrainedModel) -> dict[str, int]:
    """The index of each decoder block by its name."""
    return _decoder(model)[1]


def _decoder(model: PreTrainedModel) -> tuple[str, dict[str, int]]:
    """The name of the language decoder, and the index of each of its blocks by name.

    The blocks are the members of its outermost `ModuleList`s with matrices; where there are
    several lists, those as long as the configured number of layers.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    places = {module: name for name, module in model.named_modules()}
    lists: dict[str, nn.ModuleList] = {}
    place = ""
    # The decoder of some models is their output map (ModernBERT).
    for decoder in (model.get_decoder(), model.base_model, model):
        place = places.get(decoder, "")
        for name, module in decoder.named_modules(prefix=place) if decoder in places else ():
            inside = any(name.startswith(f"{outer}.") for outer in lists)
            if isinstance(module, nn.ModuleList) and not inside:
                matrices = any(parameter.dim() >= 2 for parameter in module.parameters())
                if matrices or any(map(is_packed_linear, module.modules())):
                    lists[name] = module
        if lists:
            break
    full_length = {name: blocks for name, blocks in lists.items() if len(blocks) == depth}
    return place, {
        f"{name}.{index}": index
        for name, blocks in (full_length or lists).items()
        for index in range(len(blocks))
    }


def _no_linear_map(module: nn.Module, leaf: str, parameter: nn.Parameter | None) -> LeftOut:
    """Why a weight inside a decoder block is not a linear map; empty when it is one."""
    if parameter is None or is_packed_linear(module):
        return ""
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Embedding):
        return "embedding_table"
    if not is_plain(parameter):
        return "quantized"
    if "bias" in leaf or "Norm" in type(module).__name__:
        return "not_linear"  # norms of single heads have a row for each
    if leaf == "weight" and parameter.dim() == 2:
        return ""
    # Numbers that a module of its own kind keeps under a name that speaks of experts.
    counts = {
        value
        for name, value in vars(module).items()
        if "expert" in name and type(value) is int and value > 0
    }
    rows = len(parameter)
    if parameter.dim() == 3:
        experts = "expert" in type(module).__name__.lower() or rows in counts
        named = leaf.endswith("weight") and rows > 1
        return "" if (experts or named) and min(parameter.shape[1:]) > 1 else "custom"
    flat = any(rows > count and rows % count == 0 for count in counts)
    return "flat_experts" if flat and parameter.dim() == 2 else "custom"


def _describe(
    module_name: str,
    module: nn.Module,
    leaf: str,
    parameter: nn.Parameter | None,
    blocks: dict[str, int],
) -> Candidate:
    parameter_name = f"{module_name}.{leaf}" if module_name else leaf
    name = module_name if leaf == "weight" and module_name else parameter_name
    block_name = next((b for b in blocks if name.startswith(f"{b}.")), None)
    inner = name[len(block_name) + 1 :] if block_name else name
    block, _, kind = inner.rpartition(".")
    packed = is_packed_linear(module)
    # Packed layers stand for the class that they replace; fused experts carry `is_transposed` in
    # transformers 5.
    source = getattr(module, "source_cls", None) if packed else type(module)
    conv1d = isinstance(source, type) and issubclass(source, Conv1D)
    transposed = conv1d or getattr(module, "is_transposed", False)
    form: Form = "parameter"
    if packed:
        form = "conv1d" if transposed else "linear"
    elif conv1d:
        form = "conv1d"
    elif isinstance(module, nn.Linear) and (
        type(module).forward is nn.Linear.forward or _maps_as_linear(module)
    ):
        form = "linear"
    elif isinstance(module, nn.Embedding):
        form = "embedding"
    elif parameter is not None and parameter.dim() == 3:
        form = "experts"
    if parameter is None or packed:
        matrices = 1
        out_features, in_features = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    else:
        *lead, rows, columns = parameter.shape
        matrices = math.prod(lead)
        out_features, in_features = (columns, rows) if transposed else (rows, columns)
    # Fused experts hold several biases.
    bias_name = f"{leaf.removesuffix('weight')}bias" if leaf.endswith("weight") else f"{leaf}_bias"
    bias = getattr(module, bias_name, None)
    bias_params = bias.numel() if isinstance(bias, torch.Tensor) else 0
    return Candidate(
        module=name,
        parameter=parameter_name,
        layer=blocks[block_name] if block_name else None,
        kind=kind,
        block=block,
        matrices=matrices,
        out_features=out_features,
        in_features=in_features,
        storage="in_out" if transposed else "out_in",
        form=form,
        n_params=matrices * out_features * in_features + bias_params,
        quantized=packed,
    )


def _maps_as_linear(module: nn.Linear) -> bool:
    """Whether a subclass of linear layers gives what they give: one tensor, a row for each row.

    Some return several tensors (routers of Llama 4 and Phi-3.5-MoE) or work in groups
    (DeepSeek-V4): an adapter that adds to the output breaks them, one on the weight does not.
    """
    forward: Callable[..., object] = type(module).forward
    given = torch.empty(1, 2, module.in_features, device="meta", dtype=module.weight.dtype)
    try:
        with torch.no_grad():
            output = forward(_on_meta(module), given)
    except Exception:
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 2, module.out_features)


def _on_meta(module: nn.Module) -> nn.Module:
    """The same module without weights: its forward pass touches nothing of the model."""
    shadow = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        shadow.__dict__[kind] = {
            name: None
            if tensor is None
            else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in getattr(module, kind).items()
        }
    shadow.__dict__["_modules"] = {
        name: None if child is None else _on_meta(child) for name, child in module._modules.items()
    }
    return shadow
