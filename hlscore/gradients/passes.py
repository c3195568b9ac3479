"""How a model is run while it is probed: a forward pass over a batch, and weights held still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.inputs.model import input_device
from hlscore.objectives.likelihood import IGNORED, LossInputs, token_log_probs
from hlscore.probes.units import ProbeExample, ProbeSet, collate


def loss_scale(model: PreTrainedModel) -> float:
    """What a loss is multiplied with before the backward pass, and its gradients divided by."""
    # Mean-loss gradients of large models lie near the smallest number float16 can hold.
    return 1024.0 if model.dtype == torch.float16 else 1.0


def run_forward(
    model: PreTrainedModel,
    probes: ProbeSet,
    examples: Sequence[ProbeExample],
    *,
    temperature: float | None = None,
) -> LossInputs:
    """Run examples forward, padded to one batch.

    Args:
        temperature: Sampling temperature, which logits are divided by; `None` for that of the
            probes.
    """
    batch = collate(
        examples,
        pad_token_id=probes.pad_token_id,
        device=input_device(model),
    )
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    labels = batch.labels.to(logits.device)
    log_probs = token_log_probs(
        logits, labels, temperature=probes.temperature if temperature is None else temperature
    )
    return LossInputs(
        log_probs=log_probs,
        counted=labels[:, 1:] != IGNORED,
        old_log_probs=batch.old_log_probs.to(log_probs),
        coefficients=batch.coefficients,
    )


@contextmanager
def frozen(model: PreTrainedModel, *, graph: bool = False) -> Iterator[None]:
    """Context in which a model is in inference mode and none of its weights requires gradients.

    Args:
        graph: Let the graph begin at the output of the input embedding.
    """

    def begin(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        # Not a leaf of the graph, which a model could not write into.
        return output if output.requires_grad else output.requires_grad_().clone()

    training = [(module, module.training) for module in model.modules()]
    weights = [
        (module, leaf, parameter.requires_grad, parameter.grad)
        for module in model.modules()
        for leaf, parameter in module.named_parameters(recurse=False)
    ]
    hook = model.get_input_embeddings().register_forward_hook(begin) if graph else None
    try:
        model.eval()
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(False)
        yield
    finally:
        if hook is not None:
            hook.remove()
        for module, was_training in training:
            module.training = was_training
        for module, leaf, requires_grad, gradient in weights:
            # By name: weights that are offloaded are other objects after each forward pass.
            restored = module._parameters[leaf]
            if restored is not None:
                restored.requires_grad_(requires_grad)
                restored.grad = gradient


@contextmanager
def weights_as_trained(model: PreTrainedModel) -> Iterator[None]:
    """Context in which no weight is rescaled for inference.

    RWKV divides the weights of its later blocks by powers of two as soon as it runs in inference
    mode, and multiplies them again in training mode: scores are those of the weights that train.
    """
    found: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "_rescale_layers") and hasattr(module, "layers_are_rescaled")
    ]
    before = [(item, item.layers_are_rescaled, item.config.rescale_every) for item in found]

    def rescale(module: Any, *, training: bool) -> None:
        own, module.training = module.training, training
        module._rescale_layers()
        module.training = own

    try:
        for module, rescaled, _ in before:
            if rescaled:
                rescale(module, training=True)
            module.config.rescale_every = 0
        yield
    finally:
        for module, rescaled, every in before:
            module.config.rescale_every, module.layers_are_rescaled = every, False
            if rescaled:
                rescale(module, training=False)
