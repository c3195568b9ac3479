"""A model held still while it is probed: no dropout, no trainable weight, no rescaling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


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
