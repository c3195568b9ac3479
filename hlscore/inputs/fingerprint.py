"""What artifacts say of a model: its sizes, and a fingerprint of its weights in any dtype."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

from hlscore.inputs.dimensions import dimensions
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.packed import count_params
from hlscore.inputs.weights import dense_weight
from hlscore.records import Candidate, Fingerprint, ModelIdentity
from hlscore.settings import CandidateSettings

SAMPLES_PER_WEIGHT = 16


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

    All candidates count, whatever `--include` and `--exclude` say. Sampled weights are rounded
    to bfloat16 first: a checkpoint gives one fingerprint in bfloat16 and in float32, on one
    device and spread over several, offloaded or sharded. Of a quantized model the structure
    hash is that of the original, but the weights hash need not be: its weights are rounded. A
    weight that cannot be had counts with its name alone.

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
    """What a weight adds to the fingerprint: the bits of its sample."""
    return sampled_weights(weight).view(torch.int16).numpy().tobytes()


def sampled_weights(weight: torch.Tensor) -> torch.Tensor:
    """Take evenly spaced weights from a tensor.

    Returns:
        Up to 16 values in storage order, bfloat16, on the CPU.
    """
    flat = weight.detach().reshape(-1)
    count = min(SAMPLES_PER_WEIGHT, flat.numel())
    places = torch.arange(count, device=flat.device) * flat.numel() // count
    return flat[places].to(torch.bfloat16).cpu()
