"""Checks that a model can be probed at all: gradients flow, rows are independent, weights stay.

They cost three forward passes and one backward pass over a few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.experts import is_fused_experts
from hlscore.gradients.passes import frozen, run_forward
from hlscore.gradients.sources import PLAIN_FORWARDS
from hlscore.inputs.modules import decoder_blocks
from hlscore.inputs.weights import is_packed_linear
from hlscore.memory import is_out_of_memory
from hlscore.probes.units import ProbeExample, ProbeSet

# Tokens of the rows of the batch that is compared with its last row alone.
_LENGTHS = (48, 32, 24)
_SAMPLES = 8
# What modelling code raises for inputs or kernels that do not fit.
_MODEL_ERRORS = (
    RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError,
)  # fmt: skip


def try_model(model: PreTrainedModel, probes: ProbeSet) -> tuple[float, float, float]:
    """Try a model on a few tokens of one example: alone, in a padded batch, and with another end.

    A padded batch makes a difference where a model assumes padding on the other side, or where
    the rows of a batch interact; the end makes one where a model is not causal, as some that read
    images are without one (PaliGemma). The pass over the single example goes backward too, to see
    that gradients flow.

    Returns:
        Root mean square of the difference that a batch makes to the log-probabilities of the
        tokens, and of the one that later tokens make to earlier ones, in nats, and how much of
        that rounding explains.
    """
    rounding = max(2e-4, 32 * torch.finfo(model.dtype).eps)
    if any(parameter.is_inference() for parameter in model.parameters()):
        return 0.0, 0.0, rounding  # refused later, with the name of a weight
    # The last tokens of three examples: the first ones are often a prompt that all begin with. The
    # last row is the shortest, so that it is padded.
    rows, longest = list[ProbeExample](), 2
    for place, length in enumerate(_LENGTHS):
        item = probes.sequences[place * len(probes.sequences) // len(_LENGTHS)]
        size = min(length, len(item.input_ids))
        if place == len(_LENGTHS) - 1:
            size = max(min(size, longest * 2 // 3), min(size, 2))
        longest = max(longest, size)
        counted = (False, *(True,) * (size - 1))
        rows.append(replace(item, input_ids=item.input_ids[-size:], counted=counted,
                            old_log_probs=()))  # fmt: skip
    ids = rows[-1].input_ids
    half = len(ids) // 2
    other = replace(rows[-1], input_ids=(*ids[:half], *ids[: len(ids) - half]))
    # Offloaded weights would all be held for the backward pass, so they are given no graph.
    offloaded = any(parameter.is_meta for parameter in model.parameters())

    def forward(examples: Sequence[ProbeExample]) -> torch.Tensor:
        passed = run_forward(model, probes, examples, temperature=1.0)
        return passed.log_probs

    difference = later = torch.zeros(1)
    with frozen(model, graph=not offloaded), torch.enable_grad():
        try:
            with ExitStack() as hooks:
                layers = [] if offloaded else _followed_layers(model, hooks)
                log_probs = forward(rows[-1:])
                if log_probs.requires_grad and not offloaded:
                    log_probs.sum().backward()  # type: ignore[no-untyped-call]
            _check_flow(model, layers)
            alone = log_probs.detach().float().cpu()
            if half > 1:
                later = (alone - forward([other]).detach().float().cpu())[0, : half - 1]
            try:
                beside = forward(rows)[-1:].detach().float().cpu()
                difference = alone - beside[:, : alone.shape[-1]]
            except RuntimeError as error:
                if not is_out_of_memory(error):  # batches that do not fit are made smaller
                    raise
        except _MODEL_ERRORS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise CaptureError(
                f"A forward and backward pass of {type(model).__name__} fails: {first_line(error)}",
                hint="hlscore runs models in evaluation mode, each probe on its own: this one "
                "cannot be probed that way.",
            ) from error
    of_batch, of_end = (float(gap.square().mean().sqrt()) for gap in (difference, later))
    return of_batch, of_end, rounding


@dataclass(slots=True, kw_only=True)
class _Layer:
    """What was seen of one layer."""

    name: str
    block: str  # its decoder block
    is_map: bool  # whether it is a linear map, packed or not, or a stack of experts
    ran: bool = False  # whether it was called with a graph
    enters: bool = False  # whether its input requires a gradient
    leaves: bool = True  # whether its output does
    # Where a gradient arrived: at its output, and back at its input.
    arrived: set[Literal["input", "output"]] = field(default_factory=set)


def _followed_layers(model: PreTrainedModel, hooks: ExitStack) -> list[_Layer]:
    """The layers of the decoder blocks that run, in order; filled by hooks while they run."""
    ran: list[_Layer] = []

    def arrive(layer: _Layer, end: Literal["input", "output"], gradient: Any) -> None:
        if gradient is not None:
            layer.arrived.add(end)

    def before(
        layer: _Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not torch.is_grad_enabled():
            return None
        if not layer.ran:
            layer.ran = True
            ran.append(layer)
        given = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(given, torch.Tensor) or not given.is_floating_point():
            return None
        if given.requires_grad:
            layer.enters = True
            # A node of its own, so that gradients on other ways to the same tensor do not count.
            own = given.view_as(given)
        elif layer.is_map:
            # Begins the graph anew, to see whether the loss depends on the output.
            own = given.detach().requires_grad_().clone()
        else:
            return None
        own.register_hook(partial(arrive, layer, "input"))  # type: ignore[no-untyped-call]
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): own})

    def after(
        layer: _Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not layer.ran or not torch.is_grad_enabled():
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        outputs = [
            item
            for item in (output if isinstance(output, tuple) else (output,))
            if isinstance(item, torch.Tensor)
            and item.is_floating_point()
            # Other layers may compute masks or places; a norm or an activation keeps the shape.
            and (layer.is_map or item.shape == getattr(given, "shape", None))
        ]
        if outputs:
            layer.leaves = any(item.requires_grad for item in outputs)
        for item in outputs:
            if item.requires_grad:
                item.register_hook(partial(arrive, layer, "output"))  # type: ignore[no-untyped-call]

    for block in decoder_blocks(model):
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            plain = type(module).forward in PLAIN_FORWARDS
            is_map = plain or is_packed_linear(module) or is_fused_experts(module)
            if is_map or not list(module.children()):
                layer = _Layer(name=name, block=block, is_map=is_map)
                for hook in (
                    module.register_forward_pre_hook(partial(before, layer), with_kwargs=True),
                    module.register_forward_hook(partial(after, layer), with_kwargs=True),
                ):
                    hooks.callback(hook.remove)
    return ran


def _check_flow(model: PreTrainedModel, ran: Sequence[_Layer]) -> None:
    """Refuse a model in which a layer passes no gradient back."""
    for place, layer in enumerate(ran):
        cut = layer.enters and (not layer.leaves or layer.arrived == {"output"})
        # A linear map has a gradient, and one before it in its block has none.
        behind_a_cut = layer.is_map and not layer.enters and "output" in layer.arrived
        behind_a_cut = behind_a_cut and any(
            other.is_map and other.enters and "output" not in other.arrived
            for other in ran[:place]
            if other.block == layer.block
        )
        if cut or behind_a_cut:
            kind = type(model.get_submodule(layer.name)).__name__
            where = f"through '{layer.name}' ({kind})" if cut else f"to the input of '{layer.name}'"
            raise CaptureError(
                f"No gradient flows back {where}: something there has no backward pass, and "
                "the scores of all modules before it would be wrong.",
                hint="Load the model without the kernel or quantization that computes there.",
            )


def check_weights_kept(
    name: str, before: Mapping[str, torch.Tensor], model: PreTrainedModel
) -> None:
    """Refuse the scores of a model whose weights changed while it was probed.

    Args:
        before: What `sampled_parameters` gave before; empty checks nothing.
    """
    after = sampled_parameters(model) if before else {}
    changed = [
        key for key, sample in after.items() if key in before and not sample.equal(before[key])
    ]
    if changed:
        more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
        raise CaptureError(
            f"The weights of '{name}' changed while it was probed: '{changed[0]}'{more}. Its "
            "forward pass writes into them, so that no score belongs to the checkpoint.",
            hint="Load the model again before you use it. If its configuration has a switch for "
            "this, turn it off.",
        )


def sampled_parameters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A few evenly spaced numbers of every parameter, by name: float32 on the CPU, NaN as 0.

    Parameters that are offloaded, or of a quantization library's own tensor type, are left out.
    """
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            if parameter.is_meta or is_traceable_wrapper_subclass(local):
                continue
            flat = local.detach().as_subclass(torch.Tensor).reshape(-1)
            if flat.itemsize == 1:  # 8-bit floats cannot be picked from on every device
                flat = flat.view(torch.uint8)
            count = min(_SAMPLES, flat.numel())
            places = torch.arange(count, device=flat.device) * flat.numel() // max(count, 1)
            found[name] = flat[places].float().nan_to_num().cpu()
    return found
