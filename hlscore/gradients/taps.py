"""Two nodes of the graph around a linear map: one saves its input, one sees its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Keep(torch.autograd.Function):
    """Saves what a module's input comes to, to be recomputed in a checkpointed block.

    It runs before the module: a block is recomputed no further than to what was saved last, so
    that the output of its last module is not computed again.
    """

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Save `kept`; what comes back holds on to it."""
        ctx.save_for_backward(kept)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:  # noqa: ARG004
        """Give no gradient: nothing depends on the anchor."""
        return None, None


class Tap(torch.autograd.Function):
    """The identity; hands on its gradient with what `Keep` saved."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        kept: torch.Tensor,  # noqa: ARG004 - an edge of the graph, which keeps the node alive
        keeper: Any,
        receive: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        """Pass the output on."""
        ctx.keeper, ctx.receive = keeper, receive
        # Not a view: some models write into the output of a linear map (Llama 4).
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Pass the gradient on, and show it."""
        (kept,) = ctx.keeper.saved_tensors
        ctx.receive(kept, gradients[0])
        return gradients[0], None, None, None
