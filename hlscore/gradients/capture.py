"""The one place that touches the user's model: hooks and flags, set and put back.

A weight gradient is either taken as it is or, for a linear map whose input and output can be
observed, never formed: its weight stays frozen, and the input and the gradient at the output are
handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hlscore.errors import CaptureError
from hlscore.gradients.experts import experts_forward
from hlscore.gradients.passes import frozen
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import Sources
from hlscore.inputs.modules import decoder_blocks

# A module and how many times it was used before in the same forward pass.
Use = tuple[str, int]


class GradientReceiver(Protocol):
    """Takes over the weight gradients that a backward pass forms, module by module."""

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take a weight gradient, in the layout of the weight."""


class _SaveInput(torch.autograd.Function):
    """Saves what is kept of a module's input, to be recomputed in a checkpointed block.

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


class _ObserveGradient(torch.autograd.Function):
    """The identity; shows its gradient together with what `_SaveInput` saved."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        kept: torch.Tensor,  # noqa: ARG004 - an edge of the graph, which keeps the node alive
        saved: Any,
        receive: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        """Return the output."""
        ctx.saved, ctx.receive = saved, receive
        # Not a view: some models write into the output of a linear map (Llama 4).
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Show the gradient and return it."""
        (kept,) = ctx.saved.saved_tensors
        ctx.receive(kept, gradients[0])
        return gradients[0], None, None, None


class GradientCapture:
    """Context in which a backward pass hands each gradient over and keeps none.

    Inside it, the model is in inference mode (dropout off), only the weights of `sources.weights`
    require gradients, and each gradient goes to the receiver as soon as it is complete and is
    then freed. On leaving, also by an exception, every hook, `.grad`, `requires_grad`,
    `training` flag, block `forward` and experts implementation is what it was.

    Args:
        receiver: Takes over the gradients; `SketchGradients` where linear maps are observed.
        checkpointing: Recompute activations in the backward pass, where the model allows it.

    Attributes:
        added: Uses of modules whose gradient was handed over since the batch began.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sources: Sources,
        receiver: GradientReceiver,
        *,
        checkpointing: bool = False,
    ) -> None:
        self._model, self._sources, self._receiver = model, sources, receiver
        self._products = receiver if isinstance(receiver, SketchGradients) else None
        recomputes = checkpointing and model.supports_gradient_checkpointing
        self._blocks = decoder_blocks(model) if recomputes else ()
        self._undo = ExitStack()
        self._uses: dict[str, int] = {}
        self._skipped: frozenset[Use] = frozenset()
        self.added: set[Use] = set()
        # Set while activations are computed that the checkpoint throws away.
        self._discarding = False
        self._kept: dict[str, torch.Tensor] = {}
        self._offloaded = any(parameter.is_meta for parameter in model.parameters())
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> GradientCapture:
        """Set flags and hooks."""
        for name, parameter in self._sources.weights.items():
            if parameter.is_inference() or not parameter.is_floating_point():
                raise CaptureError(
                    f"The weight of '{name}' can hold no gradient.",
                    hint="Load the model outside torch.inference_mode(), and quantized ones with "
                    "--estimator sketch.",
                )
            if getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise CaptureError(
                    f"The weight of '{name}' has a hook of its own that runs after its gradient.",
                    hint="Remove it first: such hooks may train the model (optimizer in backward).",
                )
        try:
            observes = bool(self._sources.maps or self._sources.experts)
            self._undo.enter_context(frozen(self._model, graph=observes))
            for name, parameter in self._sources.weights.items():
                parameter.requires_grad_(True)
                hook = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._take_gradient, name)
                )
                self._undo.callback(hook.remove)
            for name, module in self._sources.maps.items():
                self._observe_map(name, module)
            if self._sources.experts:
                self._observe_experts()
            # Not the model's own switch: that one works only in training mode, where dropout is on.
            for block in map(self._model.get_submodule, self._blocks):
                own = block.__dict__.get("forward")
                block.forward = partial(self._recomputed, block.forward)
                if own is None:
                    self._undo.callback(delattr, block, "forward")
                else:
                    self._undo.callback(setattr, block, "forward", own)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Put everything back, the last change first."""
        self._undo.close()

    def begin_batch(self, skipped: frozenset[Use] = frozenset()) -> None:
        """Start a forward and backward pass.

        Args:
            skipped: Uses of modules whose gradient for these examples was handed over before an
                earlier try broke off.
        """
        self._uses, self.added, self._skipped = {}, set(), skipped

    def clear(self) -> None:
        """Drop what a broken pass left behind."""
        self._kept.clear()
        for parameter in self._sources.weights.values():
            parameter.grad = None

    def _take_gradient(self, name: str, parameter: torch.Tensor) -> None:
        gradient, use = parameter.grad, (name, 0)
        parameter.grad = None
        if gradient is not None and use not in self._skipped:
            self._receiver.add(name, gradient)
            self.added.add(use)

    def _observe_map(self, name: str, module: nn.Module) -> None:
        def see_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(name, args[0] if args else next(iter(kwargs.values())))

        def see_output(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
            return self._observe(name, output)

        before = module.register_forward_pre_hook(see_input, with_kwargs=True)
        self._undo.callback(before.remove)
        self._undo.callback(module.register_forward_hook(see_output).remove)

    def _observe_experts(self) -> None:
        names = {id(module): names for module, names in self._sources.experts}
        key = f"hlscore-{id(self)}"

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
            named = names.get(id(module), {})

            def observe(
                leaf: str, inputs: torch.Tensor, output: torch.Tensor, counts: list[int]
            ) -> torch.Tensor:
                if leaf not in named:
                    return output
                self._keep(named[leaf], inputs)
                return self._observe(named[leaf], output, counts)

            return experts_forward(module, observe, *args, **kwargs)

        ALL_EXPERTS_FUNCTIONS[key] = forward
        self._undo.callback(ALL_EXPERTS_FUNCTIONS.__delitem__, key)
        configs: list[Any] = [module.config for module, _ in self._sources.experts]
        for config in {id(config): config for config in configs}.values():
            own = config._experts_implementation_internal
            self._undo.callback(setattr, config, "_experts_implementation_internal", own)
            config._experts_implementation_internal = key

    def _keep(self, name: str, inputs: torch.Tensor) -> None:
        if self._products is None or not torch.is_grad_enabled():
            return
        kept = inputs
        if not self._discarding:
            with torch.no_grad():
                kept = self._products.keep(name, inputs)
        self._kept[name] = _SaveInput.apply(  # type: ignore[no-untyped-call]
            self._anchor, kept.detach()
        )

    def _observe(self, name: str, output: torch.Tensor, counts: Sequence[int] = ()) -> torch.Tensor:
        kept = self._kept.pop(name, None)
        if kept is None:
            return output
        use = (name, self._uses.get(name, 0))
        self._uses[name] = use[1] + 1
        if not output.requires_grad:
            output.requires_grad_()

        def receive(kept: torch.Tensor, delta: torch.Tensor) -> None:
            if self._products is not None and use not in self._skipped:
                self._products.add_product(name, kept, delta, counts)
                self.added.add(use)

        observed: torch.Tensor = _ObserveGradient.apply(  # type: ignore[no-untyped-call]
            output, kept, kept.grad_fn, receive
        )
        return observed

    def _recomputed(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        runs = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal runs
            runs += 1
            outside, self._discarding = self._discarding, runs == 1
            try:
                return forward(*args, **kwargs)
            finally:
                self._discarding = outside
                # Recomputing may stop between the input and the output of a module.
                self._kept.clear()

        return checkpoint(
            run,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            # Stopping early skips the hook that puts offloaded weights away again.
            early_stop=not self._offloaded,
            # Whole inputs are saved the first time, what is needed of them the second.
            determinism_check="none" if self._sources.maps or self._sources.experts else "default",
            **kwargs,
        )
