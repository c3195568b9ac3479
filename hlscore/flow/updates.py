"""The flow of finished trainings: the updates they made, scores, plan."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.errors import ModelError, UsageError
from hlscore.flow.result import RankResult, run_info, with_plan
from hlscore.flow.weights_alone import opened
from hlscore.gradients.jackknife import draw_resamples
from hlscore.gradients.sketch import TestMatrices, default_sketch_size
from hlscore.gradients.statistics import Reduction, curve_ranks, reduce_gradients
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.tails import energies_of
from hlscore.inputs.adapter import Adapter, LowRank
from hlscore.inputs.model import resolve_device
from hlscore.inputs.modules import candidates_of
from hlscore.inputs.stored_weights import Rows, StoredWeights
from hlscore.inputs.trained import Trained, Update, open_trained
from hlscore.planning.problem import check_plan_settings
from hlscore.records import (
    Candidate,
    GradientStatistics,
    ProbeSummary,
    ScoreReport,
    WeightStatistics,
)
from hlscore.scores.registry import check_of_updates, find_score
from hlscore.scores.rows import build_rows, order_rows
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.weights.decomposition import measure_weight

# Updates of one base lie close to it; independent weights are at an angle of 90 degrees.
_LEAST_COSINE = 0.1
_LEAST_NOISE = 0.01
_CHUNK_NUMBERS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What finished trainings did to one weight, besides its statistics.

    Attributes:
        lora_rank: Largest rank of the LoRA that was trained on it; `None` where none was.
        rank_for_99: Smallest rank that holds 99 % of the update's energy; `None` for no update.
        relative: `||U|| / ||W||`, U the mean update.
    """

    lora_rank: int | None
    rank_for_99: int | None
    relative: float


def score_updates(
    settings: RankSettings, progress: Progress
) -> tuple[RankResult, dict[str, Moved]]:
    """Score the weight updates of finished trainings without loading a model, and plan.

    The updates of the first half of the trainings are averaged to A, those of the second to B,
    and each is a group for the standard errors, as with trials. A single one is both.

    Args:
        settings: Settings of the run, with `updates`.
    """
    check_plan_settings(settings.plan)
    check_of_updates(settings.plan.score)
    device = resolve_device(settings.model.device)
    base, modules = opened(settings)
    chosen = candidates_of(modules)
    trainings = [open_trained(name, base, settings.model) for name in settings.updates]
    for trained in trainings:
        trained.check(chosen)
    began = time.perf_counter()
    plan = settings.plan
    ranks = curve_ranks(plan.rank, also=plan.ranks)
    scorer = _Scorer(base, trainings, settings, ranks, device)
    of_weights = settings.weight_scores or find_score(plan.score).reads_weights
    weights: dict[str, WeightStatistics] = {}

    def use(item: Candidate, held: list[torch.Tensor]) -> None:
        if of_weights:
            weights[item.module] = measure_weight(held[0], item, ranks, device)
        scorer.add(item, held)
        progress.advance(1)

    progress.start("decomposing", len(chosen), "modules")
    identity = base.identity(base.read(chosen, use))
    scorer.check()
    rows = build_rows(
        modules,
        statistics=scorer.statistics,
        ranks=ranks,
        rank=plan.rank,
        seed=settings.seed,
        weights=weights if of_weights else None,
        of_updates=True,
    )
    report = ScoreReport(
        rows=order_rows(rows, find_score(plan.score), plan.rank),
        model=identity,
        probes=_summary(settings.updates),
        run=run_info(
            settings,
            seconds=time.perf_counter() - began,
            estimator="exact",
            device=device,
            dtype=base.dtype(chosen),
            notes=scorer.notes(chosen),
        ),
    )
    return with_plan(report, plan), scorer.movements


class _Scorer:
    """Reduces the updates of one weight after the other."""

    def __init__(
        self,
        base: StoredWeights,
        trainings: Sequence[Trained],
        settings: RankSettings,
        ranks: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.statistics: dict[str, GradientStatistics] = {}
        self.movements: dict[str, Moved] = {}
        self._base, self._trainings = base, trainings
        self._settings, self._device = settings, device
        # Of several, the first half has one more where their number is odd.
        self._first = (len(trainings) + 1) // 2
        counts = self._counts = (self._first, max(1, len(trainings) - self._first))
        rank, seed = settings.plan.rank, settings.seed
        self._reduction = Reduction(
            rank=rank,
            ranks=ranks,
            first_share=counts[0] / sum(counts),
            svd=settings.capture.svd,
            seed=seed,
            resamples=draw_resamples(
                (1,) * counts[0], (1,) * counts[1], count=settings.capture.bootstrap, seed=seed
            ),
        )
        self._tests = TestMatrices(size=default_sketch_size(rank), seed=seed)
        self._cosines: list[list[float]] = [[] for _ in trainings]
        self._energies = [0.0] * len(trainings)
        self._noise = [0.0] * len(trainings)

    def add(self, item: Candidate, held: list[torch.Tensor]) -> None:
        """Score the updates of one weight, which is taken out of its list and freed."""
        weight, rows = held.pop(), self._base.rows(item.parameter)
        norm = float(energies_of(weight.reshape(-1, *weight.shape[-2:])).sum()) ** 0.5
        del weight  # updates and decompositions need its room
        updates = []
        for place, trained in enumerate(self._trainings):
            update = trained.update(item, rows)
            updates.append(update)
            if update is not None:
                self._look(place, trained, item, rows, update, norm)
        ranks = [rank for trained in self._trainings if (rank := trained.rank_of(item))]
        found = self._reduce(item, updates, norm)
        self.statistics[item.module] = found
        energy = found.grad_energy.value
        self.movements[item.module] = Moved(
            lora_rank=max(ranks, default=None),
            rank_for_99=found.rank_for_99,
            relative=energy**0.5 / norm if norm else 0.0,
        )

    def check(self) -> None:
        """Refuse trainings that changed nothing, or that started from other weights."""
        for trained, energy, cosines in zip(
            self._trainings, self._energies, self._cosines, strict=True
        ):
            if not energy:
                raise UsageError(
                    f"'{trained.name}' has the weights of the base model in all "
                    f"{len(self.statistics)} candidate modules: there is no update to score.",
                    hint="Name the checkpoint after the training, or the base before it.",
                )
            median = float(torch.tensor(cosines).median()) if cosines else 1.0
            if median < _LEAST_COSINE:
                raise ModelError(
                    f"'{trained.name}' was not trained from this base model: its weights are "
                    f"unrelated to those of the base (median cosine {median:.2f}).",
                    hint="Name the model that the training started from.",
                )

    def notes(self, chosen: Sequence[Candidate]) -> tuple[str, ...]:
        """Remarks on the run."""
        found: list[str] = []
        if len(self._trainings) == 1:
            found.append(
                "A single update cannot be cross-fitted: hls is its plain tail, with the noise "
                "of that training in it. --update OTHER adds a second run."
            )
        for trained, energy, noise in zip(
            self._trainings, self._energies, self._noise, strict=True
        ):
            share = min(1.0, noise / energy)
            if share >= _LEAST_NOISE:
                found.append(
                    f"'{trained.name}' is stored in 16 bits: rounding of its weights can be up "
                    f"to {100 * share:.0f} % of the update's energy, and is of full rank."
                )
            found += trained.notes
            names = {item.parameter for item in chosen}
            ranks = [rank for item in chosen if (rank := trained.rank_of(item))]
            if ranks:
                found.append(
                    f"'{trained.name}' trained {len(ranks)} modules with LoRA: its updates have no "
                    f"more than that rank (up to {max(ranks)}), and say nothing of larger ones."
                )
            if isinstance(trained, Adapter):
                others = sorted({*trained.parameters, *trained.copies} - names)
                if others:
                    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                    found.append(
                        f"'{trained.name}' also trained {others[0]}{more}, which is not scored."
                    )
        return tuple(found)

    def _look(
        self,
        place: int,
        trained: Trained,
        item: Candidate,
        rows: Rows,
        update: Update,
        norm: float,
    ) -> None:
        """Note how large an update is, what rounding adds to it, and how far it turns a weight."""
        if isinstance(update, LowRank):
            gram = (update.left.mT @ update.left).double() * (
                update.right @ update.right.mT
            ).double()
            energy = float(gram.sum())
        else:
            energy = float(energies_of(update).sum())
        if not math.isfinite(energy):
            raise ModelError(
                f"'{trained.name}' or the base holds NaN or infinity in {item.parameter}.",
                hint="The training has diverged there: name an earlier checkpoint.",
            )
        if isinstance(update, LowRank):
            self._energies[place] += energy
            return
        self._energies[place] += energy
        self._noise[place] += (trained.rounding(item) * norm) ** 2
        flat = update.reshape(-1, update.shape[-1])
        count, inner = max(1, _CHUNK_NUMBERS // flat.shape[-1]), norm**2
        for start in range(0, len(flat), count):
            part = flat[start : start + count]
            inner -= float(rows(start, start + len(part)).float().flatten() @ part.flatten())
        trained_norm = max(0.0, 2 * inner - norm**2 + energy) ** 0.5
        if norm and trained_norm:
            self._cosines[place].append(inner / (norm * trained_norm))

    def _reduce(
        self, item: Candidate, updates: Sequence[Update | None], norm: float
    ) -> GradientStatistics:
        if all(update is None for update in updates):
            return reduce_gradients(None, norm, None, self._reduction)
        matrices = [
            None if matrix is None else matrix.to(self._device) for matrix in _matrices(updates)
        ]
        if len(matrices) == 1:
            (single,) = matrices
            assert single is not None  # noqa: S101 - just looked at
            return reduce_gradients((single, single), norm, None, self._reduction, name=item.module)
        reduction = self._reduction
        groups = (self._first, len(matrices) - self._first) if reduction.resamples else None
        received = ExactGradients((item,), self._tests, groups=groups)
        for number, matrix in enumerate(matrices):
            half = int(number >= self._first)
            received.begin_batch(half, 1.0)
            if matrix is not None:
                received.add(item.module, matrix)
            received.end_group(half, number)
        means, sketches = received.take(item.module, self._counts)
        return reduce_gradients(means, norm, sketches, reduction, name=item.module)


def _matrices(updates: Sequence[Update | None]) -> list[torch.Tensor | None]:
    """The updates, or small matrices with the same singular values and inner products.

    Factors are expressed in orthonormal bases of all left and all right ones together, which
    changes nothing that is measured: an adapter's update is never formed.
    """
    factors = [update for update in updates if isinstance(update, LowRank)]
    dense = any(isinstance(update, torch.Tensor) for update in updates)
    rank = sum(each.rank for each in factors)
    if dense or 2 * rank > min(factors[0].left.shape[-2], factors[0].right.shape[-1]):
        return [each.dense() if isinstance(each, LowRank) else each for each in updates]
    lefts, rights = (
        [each.left.double() for each in factors],
        [each.right.double() for each in factors],
    )
    left = torch.linalg.qr(torch.cat(lefts, -1)).Q
    right = torch.linalg.qr(torch.cat(rights, -2).mT).Q
    cores = iter(
        (left.mT @ a @ (b @ right)).float() for a, b in zip(lefts, rights, strict=True)
    )  # fmt: skip
    return [None if update is None else next(cores) for update in updates]


def _summary(updates: Sequence[str]) -> ProbeSummary:
    """What a report says in place of probes."""
    return ProbeSummary(
        source=", ".join(updates),
        format="update",
        objective="none",
        hash="none",
        examples=len(updates),
        truncated=0,
        dropped=0,
    )
