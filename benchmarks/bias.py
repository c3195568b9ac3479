"""How far is `hls` off the true tail with few probes, and do corrections help?

Run it with `python benchmarks/bias.py`. A true gradient of known spectrum (singular values
`i^-decay`, 64 x 64) is seen through probes that each add independent noise. `hls` is the
cross-fitted tail of two halves: noise energy averages out of it, but the leading directions are
chosen on a noisy half, miss part of the head, and that part counts as tail. Two corrections are
tried: the jackknife over 8 probe groups of each half, and extrapolation from halves of the halves
(`2 S(n) - S(n/2)`). Means, standard deviations and root mean square errors over draws, in shares
of the true tail.
"""

from __future__ import annotations

import torch
from machine import parsed, print_table, write_result

SIZE, RANK, GROUPS = 64, 8, 8


def tail(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cross-fitted tails of batches of halves, [..., m, n] each."""
    cross = first @ second.mT
    inside = torch.zeros(cross.shape[:-2])
    for half in (first, second):
        basis = torch.linalg.eigh(half @ half.mT).eigenvectors[..., -RANK:]
        inside = inside + (basis * (cross @ basis)).sum((-2, -1))
    return cross.diagonal(dim1=-2, dim2=-1).sum(-1) - inside / 2


def estimates(groups: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every estimate from group means [2, GROUPS, draws, m, n]."""
    halves = groups.mean(1)
    plain = tail(halves[0], halves[1])
    bias = torch.zeros_like(plain)
    for half in (0, 1):
        without = (GROUPS * halves[half] - groups[half]) / (GROUPS - 1)
        pair = (without, halves[1 - half].expand_as(without))
        bias += (GROUPS - 1) * (tail(*pair).mean(0) - plain)
    parts = groups.unflatten(1, (2, GROUPS // 2)).mean(2)
    smaller = torch.stack([tail(parts[0, a], parts[1, b]) for a in (0, 1) for b in (0, 1)])
    return {"hls": plain, "jackknife": plain - bias, "extrapolated": 2 * plain - smaller.mean(0)}


def main() -> None:
    """Measure, print a table and write the result."""
    options = parsed(__doc__, draws=60)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    rows = []
    for decay in (0.5, 1.0):
        values = torch.arange(1.0, SIZE + 1) ** -decay
        left, right = (torch.linalg.qr(torch.randn(SIZE, SIZE)).Q for _ in range(2))
        gradient = left * values @ right.mT
        truth = values[RANK:].square().sum()
        # One probe: 256 times the energy of the gradient as noise.
        unit = (256 * values.square().sum()).sqrt() / SIZE
        for probes in (64, 256, 1024, 4096):
            shape = (2, GROUPS, options.draws, SIZE, SIZE)
            noise = torch.randn(shape) * unit / (probes / (2 * GROUPS)) ** 0.5
            for name, found in estimates(gradient + noise).items():
                shares = found / truth
                row = {
                    "decay": decay, "probes": probes, "estimate": name,
                    "noise_over_signal": 256 / probes,
                    "mean": float(shares.mean()), "std": float(shares.std()),
                    "rmse": float((shares - 1).square().mean().sqrt()),
                }  # fmt: skip
                rows.append(row)
    print_table(
        ("decay", "probes", "estimate", "noise / signal", "mean", "std", "rmse"),
        [
            [f"{value:.4g}" if isinstance(value, float) else value for value in row.values()]
            for row in rows
        ],
    )
    settings = {"size": SIZE, "rank": RANK, "groups_per_half": GROUPS, "draws": options.draws}
    print(write_result("bias", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    main()
