"""The scores by name, each with formula, unit and source.

No score is proven: they rank modules by what a first step of training could gain or by what the
weights look like, and no published study shows that one of them predicts what a whole training
run gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hlscore.errors import UsageError
from hlscore.records import ModuleRow
from hlscore.scores.score import Score


def on_curve(curve: tuple[float, ...], row: ModuleRow, rank: int) -> float | None:
    """Read a curve of what a rank leaves over; zero where the rank spans the whole matrix.

    Returns:
        The value, or `None` when the curve does not hold that rank.
    """
    if not curve:
        return None
    if rank >= row.max_rank:
        return 0.0
    return curve[row.curve_ranks.index(rank)] if rank in row.curve_ranks else None


def hls(row: ModuleRow, rank: int) -> float | None:
    """Cross-fitted tail `S_r = 1/2 [<A - A_r, B> + <B - B_r, A>]` of the two half gradients."""
    return on_curve(row.hls_curve, row, rank)


def hls_share(row: ModuleRow, rank: int) -> float | None:
    """`hls` over the norms of both halves, times the weights: the share of a unit step."""
    value = on_curve(row.hls_curve, row, rank)
    if value is None or row.halves_norm is None:
        return None
    return value / row.halves_norm * _weights(row) if row.halves_norm else 0.0


def tail(row: ModuleRow, rank: int) -> float | None:
    """Tail energy `T_r = ||G||_F^2 - sum_{i<=r} s_i^2` of the mean gradient."""
    return on_curve(row.tail_curve, row, rank)


def grad_norm(row: ModuleRow, rank: int) -> float | None:
    """Energy `||G||_F^2` of the mean gradient."""
    return row.grad_energy


def taylor(row: ModuleRow, rank: int) -> float | None:
    """First-order weight sensitivity `||W * G||_F`, elementwise product."""
    return row.taylor


def rgn(row: ModuleRow, rank: int) -> float | None:
    """Relative gradient norm `||G||_F / ||W||_F`; undefined for a weight of zeros."""
    if row.grad_energy is None or not row.weight_norm:
        return None
    return math.sqrt(row.grad_energy) / row.weight_norm


def l1_adam(row: ModuleRow, rank: int) -> float | None:
    """What rank r leaves over of Adam's first step, `||G||_1 - <G, P_r(sign G)>`."""
    return on_curve(row.l1_adam_curve, row, rank)


def snr(row: ModuleRow, rank: int) -> float | None:
    """Signal-to-noise ratio of the singular values of `W`, as Spectrum has it."""
    return row.snr


def spectral(row: ModuleRow, rank: int) -> float | None:
    """Score of spectral hybrid LoRA, from the singular values of `W`."""
    if rank not in row.spectral_ranks:
        return None
    return row.spectral_curve[row.spectral_ranks.index(rank)]


def kappa(row: ModuleRow, rank: int) -> float | None:
    """Inverse condition number `s_min / s_1` of `W`, so that the smallest number ranks first."""
    return row.kappa


def random(row: ModuleRow, rank: int) -> float | None:
    """Seeded control, stratified by kind and size."""
    return row.random


def _spectral_ranks(row: ModuleRow) -> tuple[int, ...]:
    return row.spectral_ranks


def _weights(row: ModuleRow) -> int:
    return row.matrices * row.out_features * row.in_features


def _shared(row: ModuleRow) -> tuple[float, ...]:
    scale = _weights(row) / row.halves_norm if row.halves_norm else 0.0
    return tuple(value * scale for value in row.hls_replicates)


def _relative(row: ModuleRow) -> tuple[float, ...]:
    norm = row.weight_norm or float("inf")
    return tuple(max(value, 0.0) ** 0.5 / norm for value in row.grad_norm_replicates)


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score(
            name="hls",
            formula="1/2 [<A - A_r, B> + <B - B_r, A>], A and B the gradients "
            "or updates of two halves",
            unit="loss per unit learning rate",
            update_unit="squared weight change",
            source="hlscore: cross-fitted Eckart-Young tail",
            caveat="Biased upwards where probes are noisy: 1.1 to 1.9 times the true tail where "
            "noise and signal have equal energy (benchmarks/bias.py). More --samples lower it.",
            compute=hls,
            replicates=lambda row: row.hls_replicates,
            resampled="hls_replicates",
            follows_rank=True,
            leaves_over=True,
        ),
        Score(
            name="tail",
            formula="||G||_F^2 - sum of the r largest s_i^2",
            unit="loss per unit learning rate",
            update_unit="squared weight change",
            source="Eckart and Young 1936",
            compute=tail,
            replicates=lambda row: row.tail_replicates,
            resampled="tail_replicates",
            follows_rank=True,
            leaves_over=True,
        ),
        Score(
            name="grad_norm",
            formula="||G||_F^2",
            unit="loss per unit learning rate",
            update_unit="squared weight change",
            source="AdaGradSelect, Aletheia (layer selection by gradient norm)",
            compute=grad_norm,
            replicates=lambda row: row.grad_norm_replicates,
            resampled="grad_norm_replicates",
        ),
        Score(
            name="taylor",
            formula="||W * G||_F, elementwise product",
            unit="loss",
            source="GoRA, arXiv 2502.12171",
            compute=taylor,
            needs="whole gradients",
        ),
        Score(
            name="rgn",
            formula="||G||_F / ||W||_F",
            unit="loss per squared weight",
            update_unit="none",
            source="surgical fine-tuning, arXiv 2210.11466",
            compute=rgn,
            replicates=_relative,
            resampled="grad_norm_replicates",
        ),
        Score(
            name="l1_adam",
            formula="||G||_1 - <G, P_r(sign G)>, P_r the best approximation of rank r",
            unit="loss per unit step of Adam",
            source="hlscore: first step of Adam instead of SGD",
            compute=l1_adam,
            needs="whole gradients",
            follows_rank=True,
            leaves_over=True,
        ),
        Score(
            name="hls_share",
            formula="hls / (||A|| ||B||) times the number of weights",
            unit="weights",
            source="hlscore: hls of a step whose root mean square is 1 in every matrix",
            compute=hls_share,
            replicates=_shared,
            resampled="hls_replicates",
            follows_rank=True,
            leaves_over=True,
        ),
        Score(
            name="snr",
            formula="sum of s_i > t / sum of s_i <= t / s_1, s of W, t = IQR(s) / 1.349 * "
            "(1 + sqrt(min side / max side))",
            unit="1 / weight",
            source="Spectrum, arXiv 2406.06623",
            compute=snr,
            needs="weights",
        ),
        Score(
            name="spectral",
            formula="0.3 erank / d + 0.3 (1 - share of energy in rank r) + 0.02 ln(1 + s_1 / s_d) "
            "+ 0.2 / mean |diff ln s|, s of W, d its short side",
            unit="none",
            source="twinkle, spectral hybrid LoRA",
            compute=spectral,
            needs="weights",
            follows_rank=True,
            ranks=_spectral_ranks,
        ),
        Score(
            name="kappa",
            formula="s_min / s_1 of W: 1 / condition number, so that the smallest number is first",
            unit="none",
            source="KappaTune, arXiv 2506.16289 (PEFT's find_kappa_target_modules)",
            compute=kappa,
            needs="weights",
        ),
        Score(
            name="random",
            formula="seeded draw, stratified by kind and size",
            unit="none",
            source="control",
            compute=random,
            needs="nothing",
        ),
    )
}


def find_score(name: str) -> Score:
    """Look a score up by name."""
    if name not in SCORES:
        raise UsageError(f"There is no score '{name}'.", hint=f"Use one of: {', '.join(SCORES)}.")
    return SCORES[name]


def check_without_probes(name: str) -> None:
    """Refuse a score that needs probes, of a run that has none."""
    if find_score(name).reads_gradients:
        others = ", ".join(score.name for score in SCORES.values() if not score.reads_gradients)
        raise UsageError(
            f"The score '{name}' comes from gradients, and without probes there are none.",
            hint=f"Use --score with one of {others}, or leave --data none away.",
        )


def check_of_updates(name: str) -> None:
    """Refuse a score of single gradient entries, of a run that has updates instead."""
    if find_score(name).needs == "whole gradients":
        others = ", ".join(
            score.name for score in SCORES.values() if score.needs != "whole gradients"
        )
        raise UsageError(
            f"The score '{name}' is one of gradients, and --update reads weight updates.",
            hint=f"Use --score with one of {others}.",
        )


def score_of(row: ModuleRow, score: Score, rank: int) -> float | None:
    """Value of a score for a row; `None` for skipped and unreached rows without one."""
    value = score.compute(row, rank)
    held = score.ranks(row)
    if value is None and score.follows_rank and held and rank not in held:
        ranks = ", ".join(str(item) for item in held if item)
        raise UsageError(
            f"The report holds no score for rank {rank}.",
            hint=f"Use one of {ranks}, or run `hlscore rank` again with --rank {rank}.",
        )
    return value


def replicates_at(
    rows: Sequence[ModuleRow], score: Score, rank: int, run_rank: int
) -> list[tuple[float, ...]]:
    """Resamples of a score at a LoRA rank.

    Returns:
        One tuple per row, all of the same length; empty ones where there are no resamples of the
        score at that rank.
    """
    found = [score.replicates(row) for row in rows]
    other_rank = score.follows_rank and rank != run_rank
    return [()] * len(found) if other_rank or not all(found) else found
