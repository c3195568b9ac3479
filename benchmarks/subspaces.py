"""Which bootstrap of the cross-fitted tail is right? The experiment behind the one that is used.

Run it with `python benchmarks/subspaces.py --draws 16`. It draws independent probe sets of the
kind of the built-in one, keeps the gradient of every probe group of some modules of
`builtin:tiny`, and compares the spread of `hls` over the probe sets with the median standard
error of three ways: the leading subspaces of the full halves kept in every resample; drawn anew
from exact gradients; drawn anew from sketches of several sizes.
"""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
import torch
from builtin_corpus import training_stream
from machine import write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hlscore.gradients.bootstrap import Resamples, draw_resamples, draw_scores
from hlscore.gradients.exact import ExactGradients
from hlscore.gradients.probe_run import run_probes
from hlscore.gradients.sketch import draw_omega, short_first, sketch
from hlscore.gradients.spectrum import full_half_spectra
from hlscore.inputs.examples import example_set
from hlscore.inputs.model import load_model
from hlscore.inputs.probes import encode
from hlscore.settings import CaptureSettings, DataSettings, ModelSettings

MODULES = tuple(
    f"model.layers.{layer}.{kind}"
    for layer in (0, 3, 5)
    for kind in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)
GROUPS = 8
RESAMPLES = 100


def group_gradients(draws: int, samples: int) -> list[tuple[dict[str, torch.Tensor], Resamples]]:
    """Sums of the gradients of every group, [g, 1, m, n] by module, for each probe set."""
    loaded = load_model(ModelSettings(model="builtin:tiny", device="cpu"))
    parameters = {name: loaded.model.get_parameter(f"{name}.weight") for name in MODULES}
    stream = training_stream(20261123, frozenset())
    settings = CaptureSettings(checkpointing=False, batch_size=16)
    found = []
    for _ in track(range(draws), description="probing", transient=True):
        rows = example_set(islice(stream, samples), "drawn", DataSettings())
        probes = encode(
            rows, loaded.tokenizer, loaded.model, max_length=None, groups=GROUPS, seed=0
        )
        # A sketch as wide as the matrix is the identity: the groups themselves.
        gradients = ExactGradients(parameters, seed=0, sketch_size=1 << 20)
        run_probes(loaded.model, probes, parameters, gradients, settings, lambda _: None)
        tokens = [
            [sum(item.counted_tokens for item in group) for group in half] for half in probes.halves
        ]
        draws_of = draw_resamples(tokens[0], tokens[1], count=RESAMPLES, seed=0)
        assert draws_of is not None
        groups = {name: gradients.group_sketches(name) for name in MODULES}
        found.append(({n: g for n, g in groups.items() if g is not None}, draws_of))
    return found


def exact_score(groups: torch.Tensor, draws: Resamples, rank: int) -> float:
    """`hls` of the full halves."""
    first, second = _half_means(groups, draws)
    return full_half_spectra(first, second, first_share=0.5).cross_fitted_tail(rank)


def kept_subspaces(groups: torch.Tensor, draws: Resamples, rank: int) -> float:
    """Standard error when every resample leaves out the subspaces of the full halves."""
    first, second = _half_means(groups, draws)
    spectra = full_half_spectra(first, second, first_share=0.5)
    parts = groups.double()
    cut = len(draws.first_tokens)
    flat = parts.flatten(1)
    products = flat[:cut] @ flat[cut:].T
    for basis in (spectra.first.basis[..., :rank], spectra.second.basis[..., :rank]):
        inside = (basis.mT @ parts).flatten(1)
        products = products - inside[:cut] @ inside[cut:].T / 2
    drawn = ((draws.first_weights() @ products) * draws.second_weights()).sum(-1)
    return float(drawn.std())


def drawn_subspaces(
    groups: torch.Tensor, draws: Resamples, rank: int, size: int | None, name: str
) -> float:
    """Standard error when every resample finds its own subspaces, from a sketch if given."""
    width = groups.shape[-1]
    omega = None
    if size is not None:
        omega = draw_omega(name, seed=0, width=width, size=size, device=groups.device)
    sketches = torch.stack([sketch(group, omega) for group in groups])
    return float(draw_scores(sketches, draws, rank).hls.std())


def _half_means(groups: torch.Tensor, draws: Resamples) -> tuple[torch.Tensor, torch.Tensor]:
    cut = len(draws.first_tokens)
    first = groups[:cut].sum(0) / float(draws.first_tokens.sum())
    second = groups[cut:].sum(0) / float(draws.second_tokens.sum())
    return short_first(first), short_first(second)


def main() -> None:
    """Run, print a table, write a dated JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--samples", type=int, default=256)
    options = parser.parse_args()
    sets = group_gradients(options.draws, options.samples)
    results = []
    for rank in (4, 16):
        ways = ["kept", "drawn", *(f"drawn, k = {k}" for k in (2 * rank, 3 * rank, 4 * rank))]
        ratios: dict[str, list[float]] = {way: [] for way in ways}
        for name in track(MODULES, description=f"rank {rank}", transient=True):
            spread = np.std([exact_score(g[name], d, rank) for g, d in sets], ddof=1)
            errors = {
                "kept": [kept_subspaces(g[name], d, rank) for g, d in sets],
                "drawn": [drawn_subspaces(g[name], d, rank, None, name) for g, d in sets[:6]],
            } | {
                f"drawn, k = {k}": [drawn_subspaces(g[name], d, rank, k, name) for g, d in sets]
                for k in (2 * rank, 3 * rank, 4 * rank)
            }
            for way in ways:
                ratios[way].append(float(np.median(errors[way]) / spread))
        results += [
            {"rank": rank, "way": way, "median": round(float(np.median(ratios[way])), 2),
             "smallest": round(min(ratios[way]), 2), "largest": round(max(ratios[way]), 2)}
            for way in ways
        ]  # fmt: skip
    table = Table("rank", "subspaces", "stated / observed (median)", "smallest", "largest")
    for row in results:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    settings = {"draws": options.draws, "samples": options.samples, "modules": len(MODULES)}
    print(write_result("subspaces", {"settings": settings, "results": results}))


if __name__ == "__main__":
    main()
