"""How exact is the randomized decomposition? Compare it with the full one.

Run it with `python benchmarks/randomized.py`. Two noisy halves with one power-law signal stand in
for the gradients of a large module: the shapes are real ones, the spectra are made up.
"""

from __future__ import annotations

import time

import torch
from machine import print_table, write_result

from hlscore.gradients import tails

SHAPE = (1024, 3072)
RANKS = (4, 16, 64)
# (decay of the singular values, noise per entry): from clear signal to mostly noise.
CASES = ((0.5, 0.0005), (0.5, 0.005), (0.8, 0.002), (1.2, 0.0001), (1.2, 0.001))


def halves(decay: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two gradients with one signal and independent noise."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = SHAPE
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, rows, generator=generator)).Q
    values = torch.arange(1, rows + 1, dtype=torch.float32) ** -decay
    signal = ((left * values) @ right.T)[None]
    first, second = (
        signal + noise * torch.randn(signal.shape, generator=generator) for _ in range(2)
    )
    return first, second


def compare(decay: float, noise: float) -> list[dict[str, float]]:
    """Relative errors of one case at each rank, with the time of both ways."""
    first, second = halves(decay, noise)
    began = time.perf_counter()
    exact = tails.gradient_tails(first, second, first_share=0.5, ranks=RANKS, method="full", seed=0)
    middle = time.perf_counter()
    found = tails.gradient_tails(
        first, second, first_share=0.5, ranks=RANKS, method="randomized", seed=0
    )
    ended = time.perf_counter()
    results = []
    for place, rank in enumerate(RANKS):
        tail, true_tail = found.tail_curve[place], exact.tail_curve[place]
        hls, true_hls = found.hls_curve[place], exact.hls_curve[place]
        head, true_head = found.grad_energy.value - tail, exact.grad_energy.value - true_tail
        results.append(
            {
                "decay": decay,
                "noise": noise,
                "rank": rank,
                "tail_error": tail / true_tail - 1,
                "hls_error": hls / true_hls - 1,
                "hls_share_of_energy": true_hls / exact.halves_norm,
                "head_error": 1 - head / true_head,
                "stated_head_error": found.tail_errors[place] / head,
                "stated_hls_error": found.hls_errors[place] / abs(true_hls),
                "speedup": (middle - began) / (ended - middle),
            }
        )
    return results


def main() -> None:
    """Run, print a table, write a dated JSON."""
    results = [row for case in CASES for row in compare(*case)]
    errors = ("tail_error", "hls_error", "stated_hls_error", "head_error", "stated_head_error")
    print_table(
        ("decay", "noise", "rank", *(name.replace("_", " ") for name in errors), "x"),
        [
            (row["decay"], row["noise"], row["rank"], *(f"{row[name]:.1e}" for name in errors),
             f"{row['speedup']:.1f}")
            for row in results
        ],
    )  # fmt: skip
    settings = {
        "shape": SHAPE,
        "oversampling": tails.OVERSAMPLING,
        "power_iterations": tails.POWER_ITERATIONS,
    }
    print(write_result("randomized", {"settings": settings, "results": results}))


if __name__ == "__main__":
    main()
