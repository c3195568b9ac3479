"""Random sketches of matrices: pure functions of tensors.

A matrix is oriented with its short side first, [..., m, n] with m <= n, and sketched on the
long side: `Y = X Omega`, [..., m, k]. Entries of `Omega` are +-1 / sqrt(k), so that
`E[Omega Omega^T] = I` and inner products of sketches estimate those of the matrices.
"""

from __future__ import annotations

import hashlib

import torch


def short_first(matrices: torch.Tensor) -> torch.Tensor:
    """Orient matrices with the short side first.

    Args:
        matrices: [..., p, q].

    Returns:
        A view, [..., min(p, q), max(p, q)].
    """
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def draw_omega(
    name: str, *, seed: int, width: int, size: int, device: torch.device
) -> torch.Tensor | None:
    """Draw the Rademacher test matrix of a module; the same on every device and run.

    Args:
        name: Module name, mixed into the seed.
        seed: Seed of the run.
        width: Long side n of the module's matrices.
        size: Columns k.
        device: Where the result goes.

    Returns:
        float32 [n, k], or `None` when k >= n: the identity is as small, and exact.
    """
    if size >= width:
        return None
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    signs = torch.randint(0, 2, (width, size), generator=generator, dtype=torch.int8)
    omega: torch.Tensor = ((signs * 2 - 1).to(torch.float32) / size**0.5).to(device)
    return omega


def sketch(matrices: torch.Tensor, omega: torch.Tensor | None) -> torch.Tensor:
    """Sketch matrices on their long side.

    Args:
        matrices: float32 [E, p, q].
        omega: [max(p, q), k], or `None` for the identity.

    Returns:
        float32 [E, min(p, q), k], new memory.
    """
    oriented = short_first(matrices)
    return oriented.clone() if omega is None else oriented @ omega
