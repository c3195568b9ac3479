"""What artifacts say of a model: its sizes, and a fingerprint of its weights in any dtype."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.errors import ModelError
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.tensor_files import SAMPLES_PER_WEIGHT, sample_hash
from hlscore.inputs.weights import dense_weight, is_packed_linear, offload_source, weight_ids
from hlscore.records import Candidate, Fingerprint, ModelDimensions, ModelIdentity, ParameterSize


def identify(
    model: PreTrainedModel,
    name: str,
    revision: str | None,
    *,
    notes: tuple[str, ...] = (),
    weights_hash: str | None = None,
) -> ModelIdentity:
    """Describe a model for the artifacts; a loaded one that cannot be used is refused.

    Args:
        weights_hash: Hash of the weights of a model on the meta device; that of a loaded one is
            computed.
    """
    on_meta = weights_hash is not None
    weights = {} if on_meta else dict(model.named_parameters())
    if any(p.is_meta and offload_source(model, key) is None for key, p in weights.items()):
        raise ModelError(f"'{name}' is on the meta device: it has no weights.")
    if not on_meta and hasattr(model, "peft_config"):
        raise ModelError(
            f"'{name}' has an adapter of PEFT attached.",
            hint="Merge it first with merge_and_unload(), or load the base model alone.",
        )
    for key, weight in weights.items():
        state, module_name = getattr(weight, "quant_state", None), key.rpartition(".")[0]
        if state is None:
            continue
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"bitsandbytes has rearranged the 4-bit weights of '{name}' for inference on this "
                f"CPU ({module_name}): no gradient flows through them.",
                hint="Load the model again, and rank it before it generates anything.",
            )
        width = int(state.shape[-1])
        if weight.device.type == "cpu" and width % 2 == 0 and width % state.blocksize:
            raise ModelError(
                f"'{name}' cannot be used with 4 bits on a CPU: {module_name} has {width} inputs, "
                f"and bitsandbytes mishandles blocks of {state.blocksize} that span two rows.",
                hint="Use --load-in 8bit, or a GPU.",
            )
    candidates = candidates_of(find_modules(model))
    return ModelIdentity(
        model=name,
        revision=revision,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        n_params=count_params(model),
        dimensions=dimensions(model, candidates),
        fingerprint=Fingerprint(
            structure=structure_hash(candidates),
            weights=loaded_hash(model, candidates) if weights_hash is None else weights_hash,
        ),
        notes=notes,
    )


def structure_hash(candidates: tuple[Candidate, ...]) -> str:
    """Hash the names and shapes of all candidates, whatever `--include` says."""
    shapes = [
        [item.module, item.matrices, item.out_features, item.in_features, item.storage]
        for item in candidates
    ]
    return f"sha256:{hashlib.sha256(json.dumps(shapes).encode()).hexdigest()}"


def loaded_hash(model: PreTrainedModel, candidates: tuple[Candidate, ...]) -> str:
    """Hash some numbers of the weights of a loaded model.

    They are rounded to bfloat16: a checkpoint gives one hash in bfloat16 and in float32, on one
    device, offloaded or sharded (then every rank must call this), but need not when quantized. A
    weight that cannot be read counts with its name alone.
    """
    samples = {}
    for item in candidates:
        weight = dense_weight(model, item)
        samples[item.parameter] = (
            item.parameter.encode() if weight is None else sampled_bytes(weight)
        )
    return sample_hash(samples)


def sampled_bytes(weight: torch.Tensor) -> bytes:
    """What a weight adds to the fingerprint: the bits of up to 16 evenly spaced numbers.

    In storage order, rounded to bfloat16; `StoredTensor.sample` gives the same without torch.
    """
    flat = weight.detach().reshape(-1)
    count = min(SAMPLES_PER_WEIGHT, flat.numel())
    places = torch.arange(count, device=flat.device) * flat.numel() // count
    return flat[places].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def count_params(model: PreTrainedModel) -> int:
    """Number of parameters of a model as if none were packed; tied ones count once."""
    ids, sizes, packed = weight_ids(model), dict[int, int](), 0
    for name, module in model.named_modules():
        if is_packed_linear(module):
            bias = getattr(module, "bias", None)
            packed += int(module.out_features) * int(module.in_features)
            packed += bias.numel() if isinstance(bias, torch.Tensor) else 0
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            sizes[ids[f"{name}.{leaf}".removeprefix(".")]] = parameter.numel()
    return packed + sum(sizes.values())


def dimensions(model: PreTrainedModel, candidates: tuple[Candidate, ...]) -> ModelDimensions:
    """Sizes that the memory of a training depends on; reads names, types and shapes only."""
    config = model.config.get_text_config()
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    widths, experts = Counter[int | None](), Counter[int | None]()
    for item in candidates:
        uses = per_token if item.matrices > 1 else 1
        widths[item.layer] += uses * (item.out_features + item.in_features)
        experts[item.layer] += item.n_params if item.form == "experts" else 0
    packable_params, packable_rows = packable_sizes(model)
    return ModelDimensions(
        hidden_size=int(getattr(config, "hidden_size", 0)),
        blocks=len(widths),
        vocab_size=int(getattr(config, "vocab_size", 0)),
        packable_params=packable_params,
        packable_rows=packable_rows,
        block_widths=max(widths.values()),
        expert_params=max(experts.values()),
    )


def packable_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Weights and output rows of the linear layers that 4-bit and 8-bit loading packs."""
    params, rows, head = 0, 0, model.get_output_embeddings()
    for module in model.modules():
        inputs = outputs = 0
        if module is not head and (is_packed_linear(module) or type(module) is nn.Linear):
            inputs, outputs = int(module.in_features), int(module.out_features)
        elif module is not head and isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        params, rows = params + inputs * outputs, rows + outputs
    return params, rows


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
