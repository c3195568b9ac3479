"""The scores: each entry of `SCORES` holds all that the program knows of one.

To add a score, add an entry: its value goes into a column of `scores.parquet` of the same name, and
command line, API, plan and views read the entry.

No score is proven: they rank modules by what a first step of training could gain or by what the
weights look like, and no published study shows that one of them predicts what a whole training
run gains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hlscore.errors import UsageError
from hlscore.records import ModuleRow, RunInfo

Needs = Literal["gradients", "whole gradients", "weights", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A way to rank modules; higher means worse served by LoRA."""

    name: str  # also the column of the value in the report
    formula: str
    unit: str
    source: str
    compute: Callable[[ModuleRow, int], float | None]  # value of a row at a LoRA rank
    needs: Needs = "gradients"  # what has to be read of a model; sketches are no whole gradients
    update_unit: str = ""  # unit of a value made of weight updates; empty for the same
    # Column of bootstrap replicates, of this score or of one it follows from.
    replicates_column: str = ""
    # The score's replicate from one of that column, where it is not the same.
    replicate: Callable[[ModuleRow, float], float] | None = None
    error_column: str = ""  # column of the error that a sketch or randomized decomposition adds
    # Column of the LoRA ranks at which a row holds the value; empty where no rank matters.
    ranks_column: str = ""
    # Whether the value at rank r is the part of a gain that rank r cannot reach: only such a score
    # can choose a rank for each module.
    leaves_over: bool = False
    caveat: str = ""  # a known bias of the value

    def unit_in(self, run: RunInfo) -> str:
        """Unit of the value in a run."""
        return self.update_unit if run.scores_updates and self.update_unit else self.unit

    def replicates(self, row: ModuleRow) -> tuple[float, ...]:
        """Bootstrap replicates at the rank of the run; empty where there are none."""
        found: tuple[float, ...] = getattr(row, self.replicates_column, ())
        return found if self.replicate is None else tuple(self.replicate(row, x) for x in found)

    @property
    def follows_rank(self) -> bool:
        """Whether the value depends on the LoRA rank."""
        return bool(self.ranks_column)

    @property
    def reads_weights(self) -> bool:
        """Whether it comes from the singular values of the weights."""
        return self.needs == "weights"

    @property
    def reads_gradients(self) -> bool:
        """Whether it needs probes."""
        return self.needs in ("gradients", "whole gradients")


def _residual(curve: tuple[float, ...], row: ModuleRow, rank: int) -> float | None:
    """Read a curve over `row.curve_ranks`; zero where the rank spans the whole matrix."""
    if not curve:
        return None
    if rank >= row.max_rank:
        return 0.0
    return curve[row.curve_ranks.index(rank)] if rank in row.curve_ranks else None


def _hls_share(row: ModuleRow, rank: int) -> float | None:
    value = _residual(row.hls_curve, row, rank)
    if value is None or row.halves_norm is None:
        return None
    return value / row.halves_norm * row.n_weights if row.halves_norm else 0.0


_ALL_SCORES = (
    Score(
        name="hls",
        formula="1/2 [<A - A_r, B> + <B - B_r, A>], A and B the gradients or updates of two halves",
        unit="loss per unit learning rate",
        update_unit="squared weight change",
        source="hlscore: cross-fitted Eckart-Young tail",
        caveat="noise raises hls: 1.1 to 1.9 times the true tail where noise and signal have equal "
        "energy (benchmarks/bias.py); more --samples lower that",
        compute=lambda row, rank: _residual(row.hls_curve, row, rank),
        replicates_column="hls_replicates",
        error_column="hls_error",
        ranks_column="curve_ranks",
        leaves_over=True,
    ),
    Score(
        name="tail",
        formula="||G||_F^2 - sum of the r largest s_i^2",
        unit="loss per unit learning rate",
        update_unit="squared weight change",
        source="Eckart and Young 1936",
        compute=lambda row, rank: _residual(row.tail_curve, row, rank),
        replicates_column="tail_replicates",
        error_column="tail_energy_error",
        ranks_column="curve_ranks",
        leaves_over=True,
    ),
    Score(
        name="grad_norm",
        formula="||G||_F^2",
        unit="loss per unit learning rate",
        update_unit="squared weight change",
        source="AdaGradSelect, Aletheia (layer selection by gradient norm)",
        compute=lambda row, _: row.grad_energy,
        replicates_column="grad_norm_replicates",
        error_column="grad_energy_error",
    ),
    Score(
        name="taylor",
        formula="||W * G||_F, elementwise product",
        unit="loss",
        source="GoRA, arXiv 2502.12171",
        compute=lambda row, _: row.taylor,
        needs="whole gradients",
    ),
    Score(
        name="rgn",
        formula="||G||_F / ||W||_F",
        unit="loss per squared weight",
        update_unit="none",
        source="surgical fine-tuning, arXiv 2210.11466",
        compute=lambda row, _: (
            math.sqrt(row.grad_energy) / row.weight_norm
            if row.grad_energy is not None and row.weight_norm
            else None
        ),
        replicates_column="grad_norm_replicates",
        replicate=lambda row, value: max(value, 0.0) ** 0.5 / (row.weight_norm or float("inf")),
        error_column="rgn_error",
    ),
    Score(
        name="l1_adam",
        formula="||G||_1 - <G, P_r(sign G)>, P_r the best approximation of rank r",
        unit="loss per unit step of Adam",
        source="hlscore: first step of Adam instead of SGD",
        compute=lambda row, rank: _residual(row.l1_adam_curve, row, rank),
        needs="whole gradients",
        ranks_column="curve_ranks",
        leaves_over=True,
    ),
    Score(
        name="hls_share",
        formula="hls / (||A|| ||B||) times the number of weights",
        unit="weights",
        source="hlscore: hls of a step whose root mean square is 1 in every matrix",
        compute=_hls_share,
        replicates_column="hls_replicates",
        replicate=lambda row, value: (
            value * (row.n_weights / row.halves_norm if row.halves_norm else 0.0)
        ),
        ranks_column="curve_ranks",
        leaves_over=True,
    ),
    Score(
        name="snr",
        formula="sum of s_i > t / sum of s_i <= t / s_1, s of W, t = IQR(s) / 1.349 * "
        "(1 + sqrt(min side / max side))",
        unit="1 / weight",
        source="Spectrum, arXiv 2406.06623",
        compute=lambda row, _: row.snr,
        needs="weights",
    ),
    Score(
        name="spectral",
        formula="0.3 erank / d + 0.3 (1 - share of energy in rank r) + 0.02 ln(1 + s_1 / s_d) "
        "+ 0.2 / mean |diff ln s|, s of W, d its short side",
        unit="none",
        source="twinkle, spectral hybrid LoRA",
        compute=lambda row, rank: dict(
            zip(row.spectral_ranks, row.spectral_curve, strict=True)
        ).get(rank),
        needs="weights",
        ranks_column="spectral_ranks",
    ),
    Score(
        name="kappa",
        formula="s_min / s_1 of W: 1 / condition number, so that the smallest number is first",
        unit="none",
        source="KappaTune, arXiv 2506.16289 (PEFT's find_kappa_target_modules)",
        compute=lambda row, _: row.kappa,
        needs="weights",
    ),
    Score(
        name="random",
        formula="seeded draw, stratified by kind and size",
        unit="none",
        source="control",
        compute=lambda row, _: row.random,
        needs="nothing",
    ),
)

SCORES: dict[str, Score] = {score.name: score for score in _ALL_SCORES}


def find_score(name: str) -> Score:
    """Look a score up by name."""
    if name not in SCORES:
        raise UsageError(f"There is no score '{name}'.", hint=f"Use one of: {', '.join(SCORES)}.")
    return SCORES[name]


def score_of(row: ModuleRow, score: Score, rank: int) -> float | None:
    """Value of a score for a row; `None` for skipped and unreached rows without one."""
    value = score.compute(row, rank)
    held: tuple[int, ...] = getattr(row, score.ranks_column, ())
    if value is None and held and rank not in held:
        ranks = ", ".join(str(item) for item in held if item)
        raise UsageError(
            f"The report holds no score for rank {rank}.",
            hint=f"Use one of {ranks}, or run `hlscore rank` again with --rank {rank}.",
        )
    return value


def replicates_at(
    rows: Sequence[ModuleRow], score: Score, rank: int, run_rank: int
) -> list[tuple[float, ...]]:
    """Resamples of a score at a LoRA rank for each row; empty tuples where there are none."""
    found = [score.replicates(row) for row in rows]
    other_rank = score.follows_rank and rank != run_rank
    return [()] * len(found) if other_rank or not all(found) else found
