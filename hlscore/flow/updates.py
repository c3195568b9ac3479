"""The flow of finished trainings: the updates they made, scores, plan."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from hlscore.errors import ModelError, UsageError
from hlscore.flow.result import RankResult, result_of
from hlscore.flow.weights_alone import opened
from hlscore.gradients.jackknife import draw_resamples
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.statistics import Reduction, curve_ranks, reduce_gradients
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.tails import energies_of
from hlscore.inputs.model import resolve_device
from hlscore.inputs.modules import candidates_of
from hlscore.inputs.stored_weights import Rows
from hlscore.inputs.trained import Adapter, LowRank, Trained, Update, diverged, open_trained
from hlscore.planning.problem import check_run_settings
from hlscore.records import NO_PROBES, Candidate, GradientStatistics, WeightStatistics
from hlscore.scores.registry import find_score
from hlscore.settings import RankSettings
from hlscore.settings.capture import default_sketch_size
from hlscore.steps import Progress
from hlscore.weights.decomposition import measure_weight
from hlscore.wording import first_of

# Updates of one base lie close to it; independent weights are at an angle of 90 degrees.
_LEAST_COSINE = 0.1
_LEAST_NOISE = 0.01
_CHUNK_NUMBERS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What finished trainings did to one weight, besides its statistics."""

    lora_rank: int | None  # largest rank of the LoRA that was trained on it; `None` without
    rank_for_99: int | None  # holds 99 % of the update's energy; `None` for no update
    relative: float  # `||U|| / ||W||`, U the mean update


def score_updates(
    settings: RankSettings, progress: Progress
) -> tuple[RankResult, dict[str, Moved]]:
    """Score the weight updates of finished trainings without loading a model, and plan.

    The updates of the first half of the trainings are averaged to A, those of the second to B,
    and each is a group for the standard errors, as with trials. A single one is both. Beside the
    result comes what became of each weight, by module name.
    """
    plan = settings.plan
    check_run_settings(settings)
    device = resolve_device(settings.model.device)
    base, modules = opened(settings)
    chosen = candidates_of(modules)
    trainings = [
        _Training(open_trained(each, base, settings.model, chosen)) for each in settings.updates
    ]
    began = time.perf_counter()
    # Of several, the first half has one more where their number is odd.
    first = (len(trainings) + 1) // 2
    counts = (first, max(1, len(trainings) - first))
    reduction = Reduction(
        rank=plan.rank,
        ranks=curve_ranks(plan.rank, also=plan.ranks),
        counts=counts,
        svd=settings.capture.svd,
        seed=settings.seed,
        resamples=draw_resamples(
            (1,) * counts[0], (1,) * counts[1],
            count=settings.capture.bootstrap, seed=settings.seed,
        ),
    )  # fmt: skip
    tests = TestMatrices(size=default_sketch_size(plan.rank), seed=settings.seed)
    weights: dict[str, WeightStatistics] | None = None
    if settings.weight_scores or find_score(plan.score).reads_weights:
        weights = {}
    statistics: dict[str, GradientStatistics] = {}
    movements: dict[str, Moved] = {}

    def use(item: Candidate, held: list[torch.Tensor]) -> None:
        """Score the updates of one weight, which is taken out of its list and freed."""
        if weights is not None:
            weights[item.module] = measure_weight(held[0], item, reduction.ranks, device)
        weight, rows = held.pop(), base.rows(item.parameter)
        norm = float(energies_of(weight.reshape(-1, *weight.shape[-2:])).sum()) ** 0.5
        del weight  # updates and decompositions need its room
        updates = [each.update(item, rows, norm) for each in trainings]
        found = _reduced(item, updates, norm, reduction, tests, device)
        statistics[item.module] = found
        ranks = [rank for each in trainings if (rank := each.trained.rank_of(item))]
        movements[item.module] = Moved(
            lora_rank=max(ranks, default=None),
            rank_for_99=found.rank_for_99,
            relative=found.grad_energy.value**0.5 / norm if norm else 0.0,
        )
        progress.advance(1)

    progress.start("decomposing", len(chosen), "modules")
    identity = base.identity(base.read(chosen, use))
    notes: list[str] = []
    if len(trainings) == 1:
        notes.append(
            "A single update cannot be cross-fitted: hls is its plain tail, with the noise of that "
            "training in it. --update OTHER adds a second run."
        )
    for each in trainings:
        notes += each.notes(chosen)
    source = ", ".join(settings.updates)
    result = result_of(
        settings,
        modules,
        identity,
        replace(NO_PROBES, source=source, format="update", examples=len(trainings), notes=()),
        ranks=reduction.ranks,
        statistics=statistics,
        weights=weights,
        seconds=time.perf_counter() - began,
        estimator="exact",
        device=device,
        dtype=base.dtype(chosen),
        notes=tuple(notes),
    )
    return result, movements


@dataclass(slots=True)
class _Training:
    """A finished training, and what was seen of its updates so far."""

    trained: Trained
    energy: float = 0.0  # sum of the squares of its updates
    noise: float = 0.0  # what rounding of stored weights adds to that, at most
    # Between base and trained weight, of each that is stored in full.
    cosines: list[float] = field(default_factory=list)

    def update(self, item: Candidate, rows: Rows, norm: float) -> Update | None:
        """The update of a weight with norm `||W||_F`; its size, rounding and angle are noted."""
        update = self.trained.update(item, rows)
        if update is None:
            return None
        if isinstance(update, LowRank):
            left, right = update.left.mT @ update.left, update.right @ update.right.mT
            energy = float((left.double() * right.double()).sum())
        else:
            energy = float(energies_of(update).sum())
        if not math.isfinite(energy):
            raise diverged(self.trained, item.parameter)
        self.energy += energy
        if isinstance(update, LowRank):
            return update
        self.noise += (self.trained.rounding(item) * norm) ** 2
        flat = update.reshape(-1, update.shape[-1])
        count, inner = max(1, _CHUNK_NUMBERS // flat.shape[-1]), norm**2
        for start in range(0, len(flat), count):
            part = flat[start : start + count]
            inner -= float(rows(start, start + len(part)).float().flatten() @ part.flatten())
        trained_norm = max(0.0, 2 * inner - norm**2 + energy) ** 0.5
        if norm and trained_norm:
            self.cosines.append(inner / (norm * trained_norm))
        return update

    def notes(self, chosen: Sequence[Candidate]) -> list[str]:
        """Remarks for the report; a training is refused that changed nothing, or another base."""
        trained, name, found = self.trained, self.trained.name, []
        if not self.energy:
            raise UsageError(
                f"'{name}' has the weights of the base model in all {len(chosen)} "
                "candidate modules: there is no update to score.",
                hint="Name the checkpoint after the training, or the base before it.",
            )
        median = float(torch.tensor(self.cosines).median()) if self.cosines else 1.0
        if median < _LEAST_COSINE:
            raise ModelError(
                f"'{name}' was not trained from this base model: its weights are "
                f"unrelated to those of the base (median cosine {median:.2f}).",
                hint="Name the model that the training started from.",
            )
        share = min(1.0, self.noise / self.energy)
        if share >= _LEAST_NOISE:
            found.append(
                f"'{name}' is stored in 16 bits: rounding of its weights can be up to "
                f"{100 * share:.0f} % of the update's energy, and is of full rank."
            )
        found += trained.notes
        ranks = [rank for item in chosen if (rank := trained.rank_of(item))]
        if ranks:
            found.append(
                f"'{name}' trained {len(ranks)} modules with LoRA: its updates have no "
                f"more than that rank (up to {max(ranks)}), and say nothing of larger ones."
            )
        if isinstance(trained, Adapter):
            others = sorted(trained.parameters - {item.parameter for item in chosen})
            if others:
                found.append(f"'{name}' also trained {first_of(others, 1)}, which is not scored.")
        return found


def _reduced(
    item: Candidate,
    updates: Sequence[Update | None],
    norm: float,
    reduction: Reduction,
    tests: TestMatrices,
    device: torch.device,
) -> GradientStatistics:
    """Statistics of one weight from the updates of all trainings and the norm `||W||_F`."""
    factors = [update for update in updates if isinstance(update, LowRank)]
    dense = any(isinstance(update, torch.Tensor) for update in updates)
    if not factors and not dense:
        return reduce_gradients(None, norm, None, reduction)
    rank = sum(each.rank for each in factors)
    if dense or 2 * rank > min(factors[0].left.shape[-2], factors[0].right.shape[-1]):
        matrices = [each.dense() if isinstance(each, LowRank) else each for each in updates]
    else:
        # An adapter's update is never formed: factors in orthonormal bases of all left and all
        # right ones give small matrices with the same singular values and inner products.
        lefts = [each.left.double() for each in factors]
        rights = [each.right.double() for each in factors]
        left = torch.linalg.qr(torch.cat(lefts, -1)).Q
        right = torch.linalg.qr(torch.cat(rights, -2).mT).Q
        pairs = zip(lefts, rights, strict=True)
        cores = iter([(left.mT @ a @ (b @ right)).float() for a, b in pairs])
        matrices = [None if update is None else next(cores) for update in updates]
    moved = [None if matrix is None else matrix.to(device) for matrix in matrices]
    if len(moved) == 1 and moved[0] is not None:
        return reduce_gradients((moved[0], moved[0]), norm, None, reduction, name=item.module)
    groups = reduction.counts if reduction.resamples else None
    received = ExactGradients((item,), tests, groups=groups)
    for number, matrix in enumerate(moved):
        half = int(number >= reduction.counts[0])
        received.begin_batch(half, 1.0)
        if matrix is not None:
            received.add(item.module, matrix)
        received.end_group(half, number)
    means, sketches = received.take(item.module, reduction.counts)
    return reduce_gradients(means, norm, sketches, reduction, name=item.module)
