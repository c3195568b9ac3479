"""What artifacts say of a model: its sizes, and a fingerprint of its weights in any dtype."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.tensor_files import SAMPLES_PER_WEIGHT
from hlscore.inputs.tied import tied_names
from hlscore.inputs.weights import dense_weight, is_packed_linear
from hlscore.records import Candidate, Fingerprint, ModelDimensions, ModelIdentity, ParameterSize
from hlscore.settings import CandidateSettings


def identity_of(
    model: PreTrainedModel, name: str, revision: str | None, found: Fingerprint
) -> ModelIdentity:
    """Describe a model whose fingerprint is known, also without weights."""
    return ModelIdentity(
        model=name,
        revision=revision,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        n_params=count_params(model),
        dimensions=dimensions(model),
        fingerprint=found,
    )


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """Hash the names, shapes and some weights of every candidate of a model.

    All candidates count, regardless of `--include` and `--exclude`. Sampled weights are rounded
    to bfloat16 first: a checkpoint gives one fingerprint in bfloat16 and in float32, on one
    device and spread over several, offloaded or sharded. Of a quantized model the structure
    hash is that of the original, but the weights hash need not be: its weights are rounded. A
    weight that cannot be read counts with its name alone.

    Args:
        model: The model with its weights loaded; where they are sharded, every rank must call
            this.
    """
    candidates = candidates_of(find_modules(model, CandidateSettings()))
    weights = hashlib.sha256()
    # By name, so that a checkpoint can be sampled without knowing the order of its modules.
    for item in sorted(candidates, key=lambda item: item.parameter):
        weight = dense_weight(model, item)
        if weight is None:
            weights.update(item.parameter.encode())
        else:
            weights.update(sampled_bytes(weight))
    return Fingerprint(
        structure=structure_hash(candidates), weights=f"sha256:{weights.hexdigest()}"
    )


def structure_hash(candidates: tuple[Candidate, ...]) -> str:
    """Hash the names and shapes of the candidates; needs no weights."""
    shapes = [
        [item.module, item.matrices, item.out_features, item.in_features, item.storage]
        for item in candidates
    ]
    return f"sha256:{hashlib.sha256(json.dumps(shapes).encode()).hexdigest()}"


def sampled_bytes(weight: torch.Tensor) -> bytes:
    """What a weight adds to the fingerprint: the bits of up to 16 evenly spaced numbers.

    In storage order, rounded to bfloat16.
    """
    flat = weight.detach().reshape(-1)
    count = min(SAMPLES_PER_WEIGHT, flat.numel())
    places = torch.arange(count, device=flat.device) * flat.numel() // count
    return flat[places].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def count_params(model: PreTrainedModel) -> int:
    """Number of parameters of a model as if none were packed; tied ones count once."""
    tied, seen, total = tied_names(model), set[int | str](), 0
    for module_name, module in model.named_modules():
        packed = is_packed_linear(module)
        if packed:
            bias = getattr(module, "bias", None)
            total += int(module.out_features) * int(module.in_features)
            total += bias.numel() if isinstance(bias, torch.Tensor) else 0
        for leaf, parameter in module._parameters.items():
            name = f"{module_name}.{leaf}" if module_name else leaf
            if packed or parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter.is_meta and tied.get(name) in seen:
                continue
            seen.add(name)
            total += parameter.numel()
    return total


def dimensions(model: PreTrainedModel) -> ModelDimensions:
    """Sizes that the memory of a training depends on; reads names, types and shapes only."""
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
    """Numbers and rows of the linear layers that 4-bit and 8-bit loading packs."""
    found, head = [], model.get_output_embeddings()
    for module in model.modules():
        if module is head:
            continue
        if is_packed_linear(module) or type(module) is nn.Linear:
            found.append((int(module.out_features), int(module.in_features)))
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            found.append((int(outputs), int(inputs)))
    return sum(rows * columns for rows, columns in found), sum(rows for rows, _ in found)


def parameter_sizes(model: PreTrainedModel) -> tuple[ParameterSize, ...]:
    """Shapes of the parameters of a model that is not quantized, with how many have each."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = Counter(
        (tuple(parameter.shape), id(parameter) in tables) for parameter in model.parameters()
    )
    return tuple(
        ParameterSize(shape=shape, embedding=embedding, count=count)
        for (shape, embedding), count in found.items()
    )
