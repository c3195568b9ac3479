"""Which standard error of the cross-fitted tail is right? The experiment behind the one in use.

Run it with `python benchmarks/subspaces.py --draws 16`. It draws independent probe sets of the
kind of the built-in one, keeps the gradient of every probe group of some modules of
`builtin:tiny`, and compares the spread of `hls` over the probe sets with the standard errors that
several ways give. A bootstrap of the groups, as the package had it at first, with the leading
subspaces of the full halves kept in every resample, drawn anew from exact gradients, or drawn
anew from sketches of several sizes. And the jackknife that the package has now, with and without
its correction for the product of the noise of both halves, from exact gradients and from the
folded sketches that a run keeps of its groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from builtin_corpus import training_stream
from machine import parsed, print_table, write_result
from rich.progress import track

from hlscore.gradients.jackknife import Resamples, draw_resamples, influences
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices, fold_rows, short_first
from hlscore.gradients.sources import weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.tails import full_spectrum, gradient_tails
from hlscore.inputs.formats import example_set
from hlscore.inputs.model import load_model
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.encode import encode
from hlscore.settings import CandidateSettings, CaptureSettings, DataSettings, ModelSettings

MODULES = tuple(
    f"model.layers.{layer}.{kind}"
    for layer in (0, 3, 5)
    for kind in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)
GROUPS = 8
RESAMPLES = 100
# A resample from exact gradients takes long: so many of the probe sets have to do.
EXACT_SETS = 6

Drawn = tuple[dict[str, torch.Tensor], Resamples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to tell the standard error of `hls`."""

    name: str  # name in the table
    # Gives it, from the gradient sums of the groups [g, 1, m, n] and the draws.
    stderr: Callable[[torch.Tensor, Resamples], float]
    sets: int | None = None  # probe sets that it is tried on, at most; `None` means all


def ways(rank: int) -> list[Way]:
    """Every way to compare at a LoRA rank."""
    sizes = (2 * rank, 3 * rank, 4 * rank)
    again = [
        Way(name=f"bootstrap, drawn anew, k = {size}", stderr=partial(drawn_subspaces, rank, size))
        for size in sizes
    ]
    jackknives = [
        Way(
            name=f"jackknife{how}, " + ("exact" if size is None else f"k = {size}, folded"),
            stderr=partial(jackknife if corrected else uncorrected_jackknife, rank, size),
        )
        for how, corrected in ((" uncorrected", False), ("", True))
        for size in (None, *sorted({4 * rank, max(64, 4 * rank)}))
    ]
    return [
        Way(name="bootstrap, kept", stderr=partial(kept_subspaces, rank)),
        Way(
            name="bootstrap, drawn anew, exact",
            stderr=partial(drawn_subspaces, rank, None),
            sets=EXACT_SETS,
        ),
        *again,
        *jackknives,
    ]


# --- probe sets -------------------------------------------------------------------------------


class _GroupGradients(ExactGradients):
    """Keeps the gradient sum of every group, not folded and not rounded."""

    def __init__(self, candidates: tuple, halves: tuple[int, int]) -> None:
        super().__init__(candidates, TestMatrices(size=2, seed=0), groups=None)
        self._halves = halves
        self.kept: dict[str, list[torch.Tensor]] = {}

    def end_group(self, half: int, group: int) -> None:
        """Close a group: what its half gained since the group before."""
        for name, total in self.totals(half).items():
            groups = self.kept.setdefault(name, [])
            earlier = sum(groups[half * self._halves[0] : group], torch.zeros_like(total))
            groups.append(total - earlier)


def group_gradients(draws: int, samples: int) -> list[Drawn]:
    """Draw probe sets and take the gradient of every group of them.

    Returns:
        For each probe set, sums of the gradients of its groups, float32 [g, 1, m, n] by module,
        and the resamples.
    """
    loaded = load_model(ModelSettings(model="builtin:tiny", device="cpu"))
    chosen = candidates_of(find_modules(loaded.model, CandidateSettings(include=MODULES)))
    stream = training_stream(20261123, frozenset())
    settings = CaptureSettings(checkpointing=False, batch_size=16)
    found = []
    for _ in track(range(draws), description="probing", transient=True):
        rows = example_set(islice(stream, samples), "drawn", DataSettings())
        probes = encode(
            rows, loaded.tokenizer, loaded.model, max_length=None, groups=GROUPS, seed=0
        )
        first, second = (len(half) for half in probes.halves)
        gradients = _GroupGradients(chosen, (first, second))
        sources = weight_sources(loaded.model, chosen)
        ProbeRun(
            model=loaded.model, probes=probes, gradients=gradients, sources=sources,
            settings=settings,
        ).run()  # fmt: skip
        tokens = [
            [sum(item.counted_tokens for item in group) for group in half] for half in probes.halves
        ]
        resamples = draw_resamples(*tokens, count=RESAMPLES, seed=0)
        assert resamples is not None
        found.append(
            ({name: torch.stack(kept) for name, kept in gradients.kept.items()}, resamples)
        )
    return found


def half_means(groups: torch.Tensor, draws: Resamples) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean gradients of both halves, [1, m, n] with m <= n."""
    cut = len(draws.first_counts)
    first = groups[:cut].sum(0) / float(draws.first_counts.sum())
    second = groups[cut:].sum(0) / float(draws.second_counts.sum())
    return short_first(first), short_first(second)


def score(groups: torch.Tensor, draws: Resamples, rank: int) -> float:
    """`hls` of the full halves."""
    first, second = half_means(groups, draws)
    found = gradient_tails(first, second, first_share=0.5, ranks=(rank,), method="full", seed=0)
    return found.hls_curve[0]


# --- the jackknife in use -----------------------------------------------------------------------


def folded_sketches(groups: torch.Tensor, size: int | None) -> torch.Tensor:
    """What a run keeps of its groups: sketched, folded, rounded to bfloat16; float32 [g, 1, p, k].

    Args:
        groups: Gradient sums, float32 [g, 1, m, n].
        size: Columns k; `None` keeps the gradients themselves.

    Returns:
        The sketches.
    """
    if size is None:
        return short_first(groups)
    tests = TestMatrices(size=size, seed=0)
    sketches = torch.stack([tests.compress(group) for group in groups])
    return torch.stack([fold_rows(item) for item in sketches]).bfloat16().float()


def jackknife(rank: int, size: int | None, groups: torch.Tensor, draws: Resamples) -> float:
    """Standard error from groups and pairs of groups left out, as the package computes it."""
    sketches = folded_sketches(groups, size)
    found = influences(sketches, draws.first_counts, draws.second_counts, rank)
    return float(found.hls.square().sum()) ** 0.5


def uncorrected_jackknife(
    rank: int, size: int | None, groups: torch.Tensor, draws: Resamples
) -> float:
    """Standard error from single groups left out: the noise of both halves counts twice."""
    sketches = folded_sketches(groups, size)
    tokens = (draws.first_counts, draws.second_counts)
    variance, start = 0.0, 0
    for half, counts in enumerate(tokens):
        values = []
        for left_out in range(len(counts)):
            kept = torch.ones(len(sketches), dtype=torch.bool)
            kept[start + left_out] = False
            parts = [counts, tokens[1 - half]]
            parts[0] = counts[torch.arange(len(counts)) != left_out]
            first, second = parts if half == 0 else parts[::-1]
            some = Resamples(
                first=draws.first, second=draws.second, first_counts=first, second_counts=second
            )
            values.append(score(sketches[kept], some, rank))
        start += len(counts)
        variance += float(np.var(values)) * (len(counts) - 1)
    return variance**0.5


# --- the bootstraps that were not kept ------------------------------------------------------------


def kept_subspaces(rank: int, groups: torch.Tensor, draws: Resamples) -> float:
    """Standard error when every resample leaves out the subspaces of the full halves."""
    first, second = half_means(groups, draws)
    halves = [short_first(half).double() for half in (first, second)]
    parts = short_first(groups).double()
    cut = len(draws.first_counts)
    flat = parts.flatten(1)
    products = flat[:cut] @ flat[cut:].T
    for basis in (full_spectrum(half @ half.mT).basis[..., :rank] for half in halves):
        inside = (basis.mT @ parts).flatten(1)
        products = products - inside[:cut] @ inside[cut:].T / 2
    first_weights, second_weights = _weights(draws)
    drawn = ((first_weights @ products) * second_weights).sum(-1)
    return float(drawn.std())


def drawn_subspaces(rank: int, size: int | None, groups: torch.Tensor, draws: Resamples) -> float:
    """Standard error when every resample finds its own subspaces, from a sketch if given.

    With `Y_A`, `Y_B` the mean gradients of a resample and `v_i` the leading right singular
    vectors of `Y_A`, `<(Y_A)_r, Y_B> = sum_{i<=r} v_i^T Y_A^T Y_B v_i`: the k x k Gram matrices
    of the groups are all that is needed.
    """
    if size is None:
        sketches = short_first(groups).mT
    else:
        tests = TestMatrices(size=size, seed=0)
        sketches = torch.stack([tests.compress(group) for group in groups])
    # float32 is ample for replicates; scaling keeps small squares normal.
    unit, tokens = sketches.abs().amax(), draws.first_counts.mean()
    first, second = ((weights * tokens).float() for weights in _weights(draws))
    cut = first.shape[1]
    gram = _group_grams(sketches[:, 0] / unit)
    a = _mix(gram[:cut, :cut], first, first)
    b = _mix(gram[cut:, cut:], second, second)
    cross = _mix(gram[:cut, cut:], first, second)
    inside = _inside(a, cross, rank) + _inside(b, cross, rank)
    drawn = cross.diagonal(dim1=-2, dim2=-1).sum(-1) - inside / 2
    return float(drawn.double().std() * (unit.double() / tokens) ** 2)


def _weights(draws: Resamples) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of each group in the mean of its half, float64 [resamples, groups]."""
    first = draws.first / (draws.first @ draws.first_counts)[:, None]
    return first, draws.second / (draws.second @ draws.second_counts)[:, None]


def _group_grams(sketches: torch.Tensor) -> torch.Tensor:
    """`Y_i^T Y_j` for every two groups: [g, m, k] gives [g, g, k, k]."""
    groups, rows, size = sketches.shape
    flat = sketches.transpose(0, 1).reshape(rows, groups * size)
    return (flat.T @ flat).reshape(groups, size, groups, size).transpose(1, 2)


def _mix(grams: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Weigh the Gram matrices of groups per resample: [R, k, k]."""
    pairs = (left[:, :, None] * right[:, None, :]).flatten(1)
    return (pairs @ grams.flatten(2).flatten(0, 1)).reshape(-1, *grams.shape[2:])


def _inside(gram: torch.Tensor, cross: torch.Tensor, rank: int) -> torch.Tensor:
    """`sum_{i<=r} v_i^T C v_i` over the leading eigenvectors of each Gram matrix."""
    vectors: torch.Tensor = torch.linalg.eigh(gram).eigenvectors[..., -rank:]
    return (vectors * (cross @ vectors)).sum((-2, -1))


# --- comparing ----------------------------------------------------------------------------------


def compare(sets: list[Drawn], rank: int) -> list[dict[str, object]]:
    """Compare every way with the spread over the probe sets, module by module.

    Returns:
        One row per way: quantiles over modules of the median standard error over the spread; the
        root of the mean variance over that of the mean observed one; how often 1.96 standard
        errors hold the mean over the probe sets.
    """
    scores = {name: np.array([score(g[name], d, rank) for g, d in sets]) for name in MODULES}
    rows: list[dict[str, object]] = []
    for way in track(ways(rank), description=f"rank {rank}", transient=True):
        ratios, squares, covered = [], [], []
        for name in MODULES:
            errors = np.array([way.stderr(g[name], d) for g, d in sets[: way.sets]])
            spread = scores[name].std(ddof=1)
            ratios.append(float(np.median(errors)) / spread)
            squares.append(float((errors**2).mean()) / spread**2)
            gaps = np.abs(scores[name] - scores[name].mean())[: way.sets]
            covered.append(float((gaps <= 1.96 * errors).mean()))
        rows.append(
            {
                "rank": rank,
                "way": way.name,
                "median": round(float(np.median(ratios)), 2),
                "smallest": round(float(min(ratios)), 2),
                "largest": round(float(max(ratios)), 2),
                "root_mean_square": round(float(np.median(squares)) ** 0.5, 2),
                "coverage": round(float(np.mean(covered)), 3),
            }
        )
    return rows


def main() -> None:
    """Run, print a table, write a dated JSON."""
    ranks = {"type": int, "nargs": "+", "default": [4, 16]}
    options = parsed(__doc__, draws=16, samples=256, ranks=ranks, threads=1)
    began = time.perf_counter()
    sets = group_gradients(options.draws, options.samples)
    results = [row for rank in options.ranks for row in compare(sets, rank)]
    heads = ("rank", "standard error", "stated / observed (median)", "smallest", "largest",
             "root mean square", "coverage of 95 %")  # fmt: skip
    print_table(heads, [[*row.values()] for row in results])
    settings = vars(options) | {"modules": MODULES, "groups": GROUPS, "resamples": RESAMPLES}
    seconds = round(time.perf_counter() - began, 1)
    content = {"wall_seconds": seconds, "settings": settings, "results": results}
    print(write_result("subspaces", content))


if __name__ == "__main__":
    main()
