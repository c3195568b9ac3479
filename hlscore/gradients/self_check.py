"""Checks that a model can be probed at all: gradients flow, rows are independent, weights stay.

They cost four forward passes and one backward pass over a few tokens. What tells whether tokens
see later ones leads to a note alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.capture import frozen
from hlscore.gradients.experts import is_fused_experts
from hlscore.gradients.memory import is_out_of_memory
from hlscore.gradients.passes import run_forward
from hlscore.gradients.sources import require_gradient
from hlscore.inputs.modules import decoder_blocks
from hlscore.inputs.weights import is_packed_linear
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.settings import PaddingSide

# Tokens of the rows of the batch that is compared with its last row alone.
_LENGTHS = (48, 32, 24)
_SAMPLES = 8
# What modelling code raises for inputs or kernels that do not fit.
_MODEL_ERRORS = (
    RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError,
)  # fmt: skip


def batch_difference(
    model: PreTrainedModel, probes: ProbeSet, padding_side: PaddingSide
) -> tuple[float, float]:
    """Compare one example in a padded batch with the same example alone.

    They differ where a model assumes padding on the other side, or where the rows of a batch
    interact. The pass over the single example goes backward too, to see that gradients flow.

    Args:
        model: The model; comes back as it was.
        probes: Examples to take a few tokens of.

    Returns:
        Root mean square of the difference between the log-probabilities of the example's tokens,
        in nats, and how much rounding explains.
    """
    rounding = max(2e-4, 32 * torch.finfo(model.dtype).eps)
    if any(parameter.is_inference() for parameter in model.parameters()):
        return 0.0, rounding  # refused later, with the name of a weight
    rows = _rows(probes.sequences)
    # Offloaded weights would all be held for the backward pass, so they are given no graph.
    offloaded = any(parameter.is_meta for parameter in model.parameters())
    forward = partial(run_forward, model, probes, padding_side=padding_side, temperature=1.0)
    with frozen(model), torch.enable_grad(), ExitStack() as undo:
        if not offloaded:
            embedding = model.get_input_embeddings()
            undo.callback(embedding.register_forward_hook(require_gradient).remove)
        try:
            with ExitStack() as watching:
                watch = None if offloaded else _Watch(model, watching)
                log_probs = forward(examples=rows[-1:]).log_probs
                if watch is not None:
                    if log_probs.requires_grad:
                        log_probs.sum().backward()  # type: ignore[no-untyped-call]
                    watch.check()
            alone = log_probs.detach().float().cpu()
            try:
                beside = forward(examples=rows).log_probs[-1:].detach().float().cpu()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return 0.0, rounding  # batches that do not fit are made smaller
        except _MODEL_ERRORS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise CaptureError(
                f"A forward and backward pass of {type(model).__name__} fails: {first_line(error)}",
                hint="hlscore runs models in evaluation mode, each probe on its own: this one "
                "cannot be probed that way.",
            ) from error
    size = alone.shape[-1]
    beside = beside[:, :size] if padding_side == "right" else beside[:, -size:]
    return float((alone - beside).square().mean().sqrt()), rounding


def later_tokens_matter(model: PreTrainedModel, probes: ProbeSet) -> float:
    """How much the probabilities of tokens depend on later ones, root mean square in nats.

    Zero where a model is causal; some that read images are not, without one (PaliGemma).
    """
    (row,) = _rows(probes.sequences)[-1:]
    half = len(row.input_ids) // 2
    if half < 2 or any(parameter.is_inference() for parameter in model.parameters()):
        return 0.0
    tail = row.input_ids[: len(row.input_ids) - half]
    other = replace(row, input_ids=(*row.input_ids[:half], *tail))
    with torch.no_grad():
        first, second = (
            run_forward(model, probes, [item], padding_side="right", temperature=1.0)
            .log_probs[0, : half - 1].float()
            for item in (row, other)
        )  # fmt: skip
    return float((first - second).square().mean().sqrt())


def _rows(examples: Sequence[ProbeExample]) -> list[ProbeExample]:
    """The last tokens of three examples; the last row is the shortest, so that it is padded.

    The first tokens are often a prompt that all examples begin with.
    """
    rows, longest = [], 2
    for place, length in enumerate(_LENGTHS):
        item = examples[place * len(examples) // len(_LENGTHS)]
        size = min(length, len(item.input_ids))
        if place == len(_LENGTHS) - 1:
            size = max(min(size, longest * 2 // 3), min(size, 2))
        longest = max(longest, size)
        ids = item.input_ids[-size:]
        rows.append(replace(item, input_ids=ids, counted=(False, *(True,) * (size - 1)),
                            old_log_probs=()))  # fmt: skip
    return rows


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What was seen of one module: whether its input and output are in the graph.

    Attributes:
        enters: The input requires a gradient.
        leaves: The output does.
        output_gradient: A gradient reached the output.
        input_gradient: The module gave one back to its input.
    """

    enters: bool = False
    leaves: bool = True
    output_gradient: bool = False
    input_gradient: bool = False


class _Watch:
    """Follows the graph through the layers of the decoder blocks; `undo` removes its hooks."""

    def __init__(self, model: PreTrainedModel, undo: ExitStack) -> None:
        self._model = model
        self._seen: dict[str, _Seen] = {}
        self._blocks = tuple(decoder_blocks(model))
        # Linear maps, and all other layers without layers inside.
        self._maps: set[str] = set()
        for block in self._blocks:
            for name, module in model.get_submodule(block).named_modules(prefix=block):
                if _is_linear_map(module):
                    self._maps.add(name)
                elif list(module.children()):
                    continue
                before, after = partial(self._before, name), partial(self._after, name)
                undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def check(self) -> None:
        """Refuse a model in which a layer passes no gradient back."""
        for name, seen in self._seen.items():
            cut = seen.enters and not seen.leaves
            cut = cut or (seen.enters and seen.output_gradient and not seen.input_gradient)
            if cut or self._behind_a_cut(name, seen):
                kind = type(self._model.get_submodule(name)).__name__
                where = f"through '{name}' ({kind})" if cut else f"to the input of '{name}'"
                raise CaptureError(
                    f"No gradient flows back {where}: something there has no backward pass, and "
                    "the scores of all modules before it would be wrong.",
                    hint="Load the model without the kernel or quantization that computes there.",
                )

    def _behind_a_cut(self, name: str, seen: _Seen) -> bool:
        """Whether a linear map has a gradient, and one before it in its block has none."""
        if seen.enters or not seen.output_gradient or name not in self._maps:
            return False
        block = next(block for block in self._blocks if name.startswith(f"{block}."))
        before = takewhile(lambda other: other != name, self._seen)
        return any(
            self._seen[other].enters and not self._seen[other].output_gradient
            for other in before
            if other.startswith(f"{block}.") and other in self._maps
        )

    def _before(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not torch.is_grad_enabled():
            return None
        seen = self._seen.setdefault(name, _Seen())
        given = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(given, torch.Tensor) or not given.is_floating_point():
            return None
        if given.requires_grad:
            seen.enters = True
            # A node of its own, so that gradients on other ways to the same tensor do not count.
            own = given.view_as(given)
        elif name in self._maps:
            # Begins the graph anew, to see whether the loss depends on the output.
            own = given.detach().requires_grad_().clone()
        else:
            return None
        _on_gradient(own, seen, "input_gradient")
        if args:
            return (own, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): own}

    def _after(
        self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        seen = self._seen.get(name)
        if seen is None or not torch.is_grad_enabled():
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        outputs = [
            item
            for item in (output if isinstance(output, tuple) else (output,))
            if isinstance(item, torch.Tensor) and item.is_floating_point()
        ]
        if name not in self._maps:
            # Others may compute masks or places; a norm or an activation keeps the shape.
            outputs = [item for item in outputs if item.shape == getattr(given, "shape", None)]
        if not outputs:
            return
        connected = [item for item in outputs if item.requires_grad]
        seen.leaves = bool(connected)
        for item in connected:
            _on_gradient(item, seen, "output_gradient")


def _on_gradient(tensor: torch.Tensor, seen: _Seen, mark: str) -> None:
    tensor.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: setattr(seen, mark, getattr(seen, mark) or gradient is not None)
    )


def _is_linear_map(module: nn.Module) -> bool:
    """Whether a module is a linear map, packed or not, or a stack of experts."""
    plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    return plain or is_packed_linear(module) or is_fused_experts(module)


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
    drawn: dict[torch.device, dict[str, torch.Tensor]] = {}
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
            drawn.setdefault(flat.device, {})[name] = flat[places].float().nan_to_num()
    found: dict[str, torch.Tensor] = {}
    for samples in drawn.values():  # one transfer per device
        together = torch.cat(list(samples.values())).cpu()
        sizes = [sample.numel() for sample in samples.values()]
        found |= dict(zip(samples, torch.split(together, sizes), strict=True))
    return found
