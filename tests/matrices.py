"""Made-up gradients whose spectra are known."""

from __future__ import annotations

import torch


def power_law(
    rows: int, columns: int, decay: float, *, seed: int = 0, stack: int = 1
) -> torch.Tensor:
    """Matrices whose singular values fall as 1 / i**decay, float32 [stack, rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(stack, rows, size, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(stack, columns, size, generator=generator)).Q
    values = torch.arange(1, size + 1, dtype=torch.float32) ** -decay
    return (left * values) @ right.mT


def noisy_halves(
    signal: torch.Tensor, noise: float, *, seed: int = 9
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of two halves: one signal, and noise of a standard deviation in each."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        signal + noise * torch.randn(signal.shape, generator=generator) for _ in range(2)
    )
    return first, second
