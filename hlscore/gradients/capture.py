"""The one place that touches the user's model: hooks and flags, set and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hlscore.errors import CaptureError

OnGradient = Callable[[str, torch.Tensor], None]


class GradientCapture:
    """Context in which a backward pass hands each weight gradient over and keeps none.

    Inside it, the model is in inference mode (dropout off), only the captured weights require
    gradients, and each gradient goes to `on_gradient` as soon as it is complete and is then
    freed. On leaving, also by an exception, every hook, `.grad`, `requires_grad`, `training`
    flag and block `forward` is what it was.

    Args:
        model: The model; its weights are never changed.
        parameters: Weight parameter of each captured module, by module name.
        on_gradient: Called with a module name and its gradient, in the dtype and layout of the
            weight. The tensor is freed after the call.
        blocks: Decoder blocks whose activations are recomputed in the backward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        on_gradient: OnGradient,
        *,
        blocks: Sequence[nn.Module] = (),
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._on_gradient = on_gradient
        self._blocks = blocks
        self._undo = ExitStack()

    def __enter__(self) -> GradientCapture:
        """Set flags and hooks.

        Returns:
            This context.

        Raises:
            CaptureError: A weight can hold no gradient.
        """
        self._check_parameters()
        try:
            self._set_flags()
            for name, parameter in self._parameters.items():
                hook = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._hand_over, name)
                )
                self._undo.callback(hook.remove)
            for block in self._blocks:
                self._checkpoint(block)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put everything back, the last change first."""
        self._undo.close()

    def _check_parameters(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.is_inference() or not parameter.is_floating_point():
                raise CaptureError(
                    f"The weight of '{name}' can hold no gradient.",
                    hint="Load the model outside torch.inference_mode() and unquantized.",
                )
            if getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise CaptureError(
                    f"The weight of '{name}' has a hook of its own that runs after its gradient.",
                    hint="Remove it first: such hooks may train the model (optimizer in backward).",
                )

    def _set_flags(self) -> None:
        for module in self._model.modules():
            self._undo.callback(setattr, module, "training", module.training)
        self._model.eval()
        for parameter in self._model.parameters():
            self._undo.callback(
                _restore_parameter, parameter, parameter.requires_grad, parameter.grad
            )
            parameter.grad = None
            parameter.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def _hand_over(self, name: str, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        if gradient is not None:
            self._on_gradient(name, gradient)

    def _checkpoint(self, block: nn.Module) -> None:
        # Not the model's own switch: that one works only in training mode, where dropout is on.
        own = block.__dict__.get("forward")
        block.forward = partial(_recomputed, block.forward)
        self._undo.callback(_restore_forward, block, own)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _restore_parameter(
    parameter: nn.Parameter, requires_grad: bool, gradient: torch.Tensor | None
) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = gradient


def _restore_forward(block: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        del block.forward
    else:
        block.forward = own
