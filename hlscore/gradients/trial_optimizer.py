"""Optimizers of trials: they keep no state per weight, so that no gradient has to be kept.

A gradient is applied as soon as it appears and then freed. `factored` is Adafactor (Shazeer and
Stern, arXiv 1804.04235) without momentum and with an absolute learning rate, `sign` is signSGD
(arXiv 1802.04434), `rms` scales each matrix's gradient to a root mean square of 1. In all of them
a rate is the root mean square of one step's change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from hlscore.gradients.sketch import seeded_generator
from hlscore.processes import Processes


def round_randomly(
    values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Round float32 to a 16-bit dtype, up or down with the probability that keeps the mean.

    Rounding to the nearest would lose every change below half of a weight's last digit.

    Args:
        dtype: `bfloat16` or `float16`; other dtypes are converted as usual.

    Returns:
        The values in the dtype. Below 6e-5 float16 has fewer digits, and the nearest is taken.
    """
    dropped_bits = {torch.bfloat16: 16, torch.float16: 13}.get(dtype)
    if dropped_bits is None:
        return values.to(dtype)
    noise = torch.randint(
        0, 1 << dropped_bits, values.shape, dtype=torch.int32, device=values.device,
        generator=generator,
    )  # fmt: skip
    bits = values.contiguous().view(torch.int32) + noise
    return (bits & -(1 << dropped_bits)).view(torch.float32).to(dtype)


class TrialOptimizer:
    """Receives gradients and moves the weights by them, one optimizer step after the other.

    Args:
        compensated: Keep what 16-bit weights cannot hold beside them; else they are rounded at
            random.

    Attributes:
        rate: Learning rate of the current step, set by the caller.
        moved: Modules whose weight was moved in the current trial.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: str,
        *,
        compensated: bool,
        processes: Processes = Processes(),
    ) -> None:
        self._weights, self._optimizer, self._processes = weights, optimizer, processes
        self._compensated = compensated
        self.restart(0)

    def restart(self, seed: int) -> None:
        """Forget the last trial, and draw what rounds at random from a seed."""
        self.moved: set[str] = set()
        self._residuals: dict[str, torch.Tensor] = {}
        # Row and column means of the second moment: p + q numbers per matrix [p, q].
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rate, self._step, self._share, self._last_part = 0.0, 0, 0.0, False
        self._held: dict[str, torch.Tensor] = {}
        drawn = seeded_generator(f"{seed}:{self._optimizer}").initial_seed()
        devices = {weight.device for weight in self._weights.values()}
        self._generators = {dev: torch.Generator(dev).manual_seed(drawn) for dev in devices}

    def begin_part(self, share: float, *, last: bool) -> None:
        """Set the share of the step's loss in the next backward pass; `last` ends the step."""
        self._share, self._last_part = share, last

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a gradient; in the last part of a step the weight moves at once.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        whole = gradient.reshape(-1, *gradient.shape[-2:]).float()
        if self._share != 1:
            whole = whole.mul_(self._share)
        if name in self._held:
            whole += self._held.pop(name)
        if self._last_part and self._processes.size == 1:
            self._move(name, whole)
        else:
            self._held[name] = whole

    def end_step(self) -> None:
        """Move the weights whose gradient is still held: of several processes, the sum."""
        for name, gradient in self._processes.add_up(self._held).items():
            self._move(name, gradient)
        self._held.clear()
        self._step += 1

    @torch.no_grad()
    def _move(self, name: str, gradient: torch.Tensor) -> None:
        """Move a weight; its gradient, float32 [E, p, q], is written over."""
        weight = self._weights[name]
        if self._optimizer == "sign":
            step = gradient.sign_()
        else:
            least = 1e-30
            if self._optimizer == "factored":  # decay `1 - t^-0.8`, clipped at a mean square of 1
                rows, columns = (
                    torch.linalg.vector_norm(gradient, dim=side).square() / gradient.shape[side]
                    + 1e-30
                    for side in (-1, -2)
                )
                if name in self._moments:
                    decay = 1 - (self._step + 1) ** -0.8
                    rows = torch.lerp(rows, self._moments[name][0], decay)
                    columns = torch.lerp(columns, self._moments[name][1], decay)
                self._moments[name] = rows, columns
                by_row = (rows / rows.mean(-1, keepdim=True)).rsqrt()
                gradient.mul_(by_row.unsqueeze(-1)).mul_(columns.rsqrt().unsqueeze(-2))
                least = 1.0
            # Root mean square of each matrix, without a copy as squaring would make.
            norms = torch.linalg.vector_norm(gradient, dim=(-2, -1), keepdim=True)
            size = gradient.shape[-2] * gradient.shape[-1]
            step = gradient.div_((norms / math.sqrt(size)).clamp(min=least))
        step = step.view(weight.shape)
        if weight.dtype not in (torch.bfloat16, torch.float16):
            weight.add_(step, alpha=-self.rate)
        elif self._compensated:
            wanted = step.mul_(-self.rate).add_(weight)
            if name in self._residuals:
                wanted += self._residuals[name]
            weight.copy_(wanted)
            self._residuals[name] = (wanted - weight).to(weight.dtype)
        else:
            wanted = step.mul_(-self.rate).add_(weight)
            weight.copy_(round_randomly(wanted, weight.dtype, self._generators[weight.device]))
        self.moved.add(name)

    @torch.no_grad()
    def take_back(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """Put a weight back to its base; returns base minus weight, in float32."""
        weight = self._weights[name]
        here = base.to(weight.device)
        found = here.to(torch.float32, copy=True).sub_(weight)
        if name in self._residuals:
            found -= self._residuals.pop(name)
        weight.copy_(here)
        return found
