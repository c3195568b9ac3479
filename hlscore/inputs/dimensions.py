"""Sizes of a model that the memory of its training depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.packed import is_packed_linear
from hlscore.records import ModelDimensions, ParameterSize
from hlscore.settings import CandidateSettings


def dimensions(model: PreTrainedModel) -> ModelDimensions:
    """Measure a model; reads names, types and shapes only."""
    config = model.config.get_text_config()
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    widths, experts = Counter[int | None](), Counter[int | None]()
    for item in candidates_of(find_modules(model, CandidateSettings())):
        uses = per_token if item.matrices > 1 else 1
        sides = uses * (item.out_features + item.in_features)
        widths[item.layer] += sides
        experts[item.layer] += item.n_params if item.form == "experts" else 0
    packable, rows = packable_sizes(model)
    return ModelDimensions(
        hidden_size=int(getattr(config, "hidden_size", 0)),
        blocks=len(widths),
        vocab_size=int(getattr(config, "vocab_size", 0)),
        packable_params=packable,
        packable_rows=rows,
        block_widths=max(widths.values()),
        expert_params=max(experts.values()),
    )


def packable_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Count what 4-bit and 8-bit loading packs."""
    found = list(_packable(model))
    return sum(rows * columns for rows, columns in found), sum(rows for rows, _ in found)


def parameter_sizes(model: PreTrainedModel) -> tuple[ParameterSize, ...]:
    """List the parameters of a model that is not quantized; reads names, types and shapes only."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = Counter(
        (tuple(parameter.shape), id(parameter) in tables) for parameter in model.parameters()
    )
    return tuple(
        ParameterSize(shape=shape, embedding=embedding, count=count)
        for (shape, embedding), count in found.items()
    )


def _packable(model: PreTrainedModel) -> Iterator[tuple[int, int]]:
    """Outputs and inputs of each linear layer that 4-bit or 8-bit loading packs."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head:
            continue
        if is_packed_linear(module) or type(module) is nn.Linear:
            yield int(module.out_features), int(module.in_features)
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            yield int(outputs), int(inputs)
