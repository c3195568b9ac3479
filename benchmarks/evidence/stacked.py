"""Many trainings of one arm at once: seeds and learning rates are a dimension of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional
from world import Batch

WARMUP = 0.1
LARGEST_NORM = 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training of an arm."""

    seed: int  # decides the examples and the adapters' first values
    full_rate: float  # peak learning rate of what is trained in full
    lora_rate: float  # peak learning rate of the adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a training."""

    trial: Trial  # the training
    curve: tuple[float, ...]  # test loss in nats per counted token at each measured step
    tuning_loss: float  # loss on the examples that choose the learning rate, at the end
    losses: tuple[float, ...]  # loss of each test example at the end [examples]
    accuracy: float  # share of test examples whose every counted token is the likeliest


def train(
    model: nn.Module,
    trials: Sequence[Trial],
    batches: Callable[[int, int], Batch],
    *,
    steps: int,
    measured: Sequence[int],
    tuning: Batch,
    test: Batch,
    start: Callable[[int], Mapping[str, torch.Tensor]] | None = None,
) -> tuple[list[Trained], Tensors]:
    """Train one arm several times with AdamW; warm-up of 10 %, linear decay, norms clipped at 1.

    Args:
        model: The wrapped model; what requires a gradient is trained. It is not changed.
        batches: Gives the batch of a seed and a step.
        measured: Steps after which the test loss is measured; the last one always is.
        tuning: Examples that choose the learning rate.
        test: Examples that are reported.
        start: First values of trained parameters of a seed; others start as in the model.

    Returns:
        What came of each training, and the trained parameters [trainings, ...].
    """
    fixed, trained = _split(model)
    starts = [{**trained, **(start(trial.seed) if start else {})} for trial in trials]
    stacked = {
        name: torch.stack([values[name] for values in starts]).requires_grad_() for name in trained
    }
    rates = {name: _rates(name, trials, value.dim()) for name, value in stacked.items()}
    first = {name: torch.zeros_like(value) for name, value in stacked.items()}
    second = {name: torch.zeros_like(value) for name, value in stacked.items()}
    device = next(iter(stacked.values())).device
    run = vmap(lambda values, ids: _logits(model, fixed, values, ids), randomness="different")
    names, curves = list(stacked), []
    for step in range(1, steps + 1):
        each = [batches(trial.seed, step) for trial in trials]
        ids = torch.stack([batch.ids for batch in each]).to(device)
        labels = torch.stack([batch.labels for batch in each]).to(device)
        losses = _token_losses(run(stacked, ids), labels).flatten(1)
        counted = (labels[:, :, 1:] != -100).flatten(1).sum(dim=1)
        total = (losses.sum(dim=1) / counted).sum()
        gradients = torch.autograd.grad(total, [stacked[name] for name in names])
        factor = min(step / (WARMUP * steps), (steps - step + 1) / ((1 - WARMUP) * steps), 1.0)
        with torch.no_grad():
            for name, gradient in zip(names, clipped(gradients), strict=True):
                first[name].lerp_(gradient, 1 - BETAS[0])
                second[name].lerp_(gradient.square(), 1 - BETAS[1])
                mean = first[name] / (1 - BETAS[0] ** step)
                scale = (second[name] / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
                stacked[name] -= factor * rates[name] * mean / scale
            if step in measured or step == steps:
                curves.append(_measured(run, stacked, test)[0].mean(dim=1))
    chosen, _ = _measured(run, stacked, tuning)
    at_end, right = _measured(run, stacked, test)
    found = [
        Trained(
            trial=trial,
            curve=tuple(round(float(curve[place]), 6) for curve in curves),
            tuning_loss=float(chosen[place].mean()),
            losses=tuple(round(float(value), 6) for value in at_end[place]),
            accuracy=float(right[place].float().mean()),
        )
        for place, trial in enumerate(trials)
    ]
    return found, stacked


def clipped(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Shrink the gradients [trainings, ...] of each training to a joint norm of at most 1."""
    norms = torch.stack([item.flatten(1).norm(dim=1) for item in gradients]).norm(dim=0)
    factors = (LARGEST_NORM / (norms + 1e-6)).clamp(max=1.0)
    return [item * factors.view(-1, *[1] * (item.dim() - 1)) for item in gradients]


def _split(model: nn.Module) -> tuple[Tensors, Tensors]:
    parameters = dict(model.named_parameters())
    trained = {n: value.detach() for n, value in parameters.items() if value.requires_grad}
    fixed = {n: value.detach() for n, value in parameters.items() if not value.requires_grad}
    return {**fixed, **dict(model.named_buffers())}, trained


def _rates(name: str, trials: Sequence[Trial], dimensions: int) -> torch.Tensor:
    found = [trial.lora_rate if "lora_" in name else trial.full_rate for trial in trials]
    return torch.tensor(found).view(-1, *[1] * (dimensions - 1))


def _logits(model: nn.Module, fixed: Tensors, values: Tensors, ids: torch.Tensor) -> torch.Tensor:
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    given = {"input_ids": ids, "position_ids": places, "attention_mask": None}
    return functional_call(model, {**fixed, **values}, (), given).logits


def _token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses [..., tokens - 1], zero where nothing is counted."""
    targets = labels[..., 1:]
    found = functional.cross_entropy(
        logits[..., :-1, :].flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return found.view(targets.shape)


@torch.no_grad()
def example_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each example of one model [examples], and whether all its tokens are right."""
    one = {name: value[None] for name, value in _split(model)[1].items()}
    fixed = _split(model)[0]
    run = vmap(lambda values, ids: _logits(model, fixed, values, ids))
    losses, right = _measured(run, one, batch)
    return losses[0], right[0]


@torch.no_grad()
def _measured(
    run: Callable[[Tensors, torch.Tensor], torch.Tensor], stacked: Tensors, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of each example [trainings, examples], and whether all its tokens are right."""
    count = len(next(iter(stacked.values())))
    device = next(iter(stacked.values())).device
    losses, right = [], []
    for ids, labels in zip(batch.ids.split(64), batch.labels.split(64), strict=True):
        logits = run(stacked, ids.to(device).expand(count, *ids.shape))
        targets = labels.to(device).expand(count, *labels.shape)
        here = targets[..., 1:] != -100
        losses.append(_token_losses(logits, targets).sum(dim=-1) / here.sum(dim=-1))
        hit = (logits[..., :-1, :].argmax(dim=-1) == targets[..., 1:]) | ~here
        right.append(hit.all(dim=-1))
    return torch.cat(losses, dim=1), torch.cat(right, dim=1)
