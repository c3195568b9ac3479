"""Slow oracles: every number computed the obvious way, in float64, one example at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hlscore.probes.units import ProbeExample

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class DenseGradients:
    """Mean gradients of one weight, [E, p, q]: of each half, and of all tokens."""

    first: Matrix
    second: Matrix
    mean: Matrix


def dense_gradients(
    model: PreTrainedModel, halves: Sequence[Sequence[ProbeExample]], parameters: Sequence[str]
) -> tuple[dict[str, DenseGradients], float]:
    """One plain backward pass per half, without padding, hooks, batches or checkpoints.

    The model is changed (requires_grad, grad): give it a copy of its own.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sums, tokens, loss = [], [], 0.0
    for half in halves:
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        for example in half:
            ids = torch.tensor([example.input_ids])
            logits = model(input_ids=ids, use_cache=False).logits.double()
            likelihood = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            total = total - likelihood[torch.tensor(example.counted[1:])].sum()
        total.backward()
        loss += float(total.detach())
        tokens.append(sum(example.counted_tokens for example in half))
        sums.append({name: _stack(model.get_parameter(name)) for name in parameters})
    gradients = {
        name: DenseGradients(
            first=sums[0][name] / tokens[0],
            second=sums[1][name] / tokens[1],
            mean=(sums[0][name] + sums[1][name]) / sum(tokens),
        )
        for name in parameters
    }
    return gradients, loss / sum(tokens)


def _stack(parameter: torch.nn.Parameter) -> Matrix:
    gradient = parameter.grad
    dense = torch.zeros_like(parameter) if gradient is None else gradient
    return dense.detach().double().reshape(-1, *parameter.shape[-2:]).numpy().copy()


def energy(stack: Matrix) -> float:
    """`||G||_F^2` summed over matrices."""
    return float((stack**2).sum())


def tail(stack: Matrix, rank: int) -> float:
    """Energy beyond the best rank-r approximation of each matrix, from full SVDs."""
    return float(sum((np.linalg.svd(m, compute_uv=False)[rank:] ** 2).sum() for m in stack))


def truncated(matrix: Matrix, rank: int) -> Matrix:
    """Best rank-r approximation, from a full SVD."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])


def cross_fitted_tail(first: Matrix, second: Matrix, rank: int) -> float:
    """`1/2 [<A - A_r, B> + <B - B_r, A>]` summed over matrices."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        total += ((a - truncated(a, rank)) * b).sum() + ((b - truncated(b, rank)) * a).sum()
    return total / 2


def best_choice(scores: Sequence[float], params: Sequence[int], limit: int) -> float:
    """Largest total score of any set of modules whose parameters fit, by trying all sets."""
    best = 0.0
    for size in range(len(scores) + 1):
        for chosen in itertools.combinations(range(len(scores)), size):
            if sum(params[i] for i in chosen) <= limit:
                best = max(best, sum(scores[i] for i in chosen))
    return best


def best_options(
    menus: Sequence[Sequence[tuple[float, tuple[float, ...]]]], limits: Sequence[float]
) -> float | None:
    """Largest total value of one option (value, costs) per module within all limits.

    Found by trying everything; `None` where nothing fits.
    """
    best = None
    for picked in itertools.product(*menus):
        costs = [sum(option[1][i] for option in picked) for i in range(len(limits))]
        if all(cost <= limit for cost, limit in zip(costs, limits, strict=True)):
            value = sum(option[0] for option in picked)
            best = value if best is None else max(best, value)
    return best


def sign_step_rest(stack: Matrix, rank: int) -> float:
    """`||G||_1 - <G, P_r(sign G)>`, one full SVD per matrix; what is mere rounding has no sign."""
    total = 0.0
    for g in stack:
        signs = np.sign(g) * (np.abs(g) > 2.0**-23 * np.abs(g).max())
        total += float(np.abs(g).sum() - (g * truncated(signs, rank)).sum())
    return total
