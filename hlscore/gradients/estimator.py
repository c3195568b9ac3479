"""Which estimator a run uses and why, and the memory that each would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from hlscore.errors import UsageError
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sources import observed_as
from hlscore.gradients.sums import group_bytes
from hlscore.inputs.examples import cut
from hlscore.inputs.tokens import embedding_rows
from hlscore.memory import USABLE_SHARE, free_bytes
from hlscore.objectives.likelihood import CHUNK_NUMBERS
from hlscore.probes.units import ProbeSet, by_length
from hlscore.processes import Processes
from hlscore.records import Candidate
from hlscore.scores.registry import find_score
from hlscore.settings import CaptureSettings, RankSettings
from hlscore.settings.capture import default_sketch_size
from hlscore.wording import memory


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """Predicted memory of a run besides the weights, in bytes."""

    activations: int  # activations and logits of the largest batch, an estimate
    exact_sums: int  # float32 sums of both halves and group sketches of the exact estimator
    largest_gradient: int  # the largest gradient that is formed at a time
    sketch_sums: int  # sketches of both halves and of the groups
    sketch_work: int  # test matrices, and the largest gradient that has to be formed

    def sums(self, estimator: str) -> int:
        """What an estimator adds up: that is stored, too, where a run is to be resumed."""
        return self.sketch_sums if estimator == "sketch" else self.exact_sums

    def on_device(self, estimator: str, *, sums_on_host: bool) -> int:
        """Memory that an estimator takes on the device of the model."""
        work = self.sketch_work if estimator == "sketch" else self.largest_gradient
        elsewhere = sums_on_host and estimator == "exact"
        return self.activations + work + (0 if elsewhere else self.sums(estimator))


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorChoice:
    """How gradients are captured."""

    estimator: str
    reason: str
    sketch_size: int  # columns of a sketch, of groups too
    needs: MemoryNeeds
    free_bytes: int  # free memory that the choice went by


def choose_estimator(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    probes: ProbeSet,
    settings: RankSettings,
    *,
    device: torch.device,
    reserved_bytes: int,
    itemsize: int,
    packed: bool,
    processes: Processes = Processes(),
    stored: tuple[str, str] | None = None,
) -> EstimatorChoice:
    """The estimator of the settings, or the exact one if it fits; the same in all processes.

    Args:
        reserved_bytes: What the weights will take of the free memory; 0 once they are loaded.
        stored: Estimator and reason of the unfinished run that is resumed: memory that is free
            now does not change them.
    """
    capture = settings.capture
    largest = max(settings.plan.rank, *settings.plan.ranks, 1)
    of_sketches = columns = capture.sketch_size or default_sketch_size(largest)
    if capture.sketch_size is None:
        # Beside exact sums they give standard errors alone.
        columns //= 2
    predicted = partial(
        predict, model, candidates, probes, capture, itemsize=itemsize, processes=processes.size
    )
    needs = predicted(sketch_size=columns)
    free = max(0, min(processes.gather(free_bytes(device))) - reserved_bytes)
    offloaded = not reserved_bytes and any(weight.is_meta for weight in model.parameters())
    if stored is not None:
        estimator, reason = stored
    elif capture.estimator != "auto":
        estimator, reason = capture.estimator, f"{capture.estimator}: asked for."
    elif packed or offloaded:
        estimator = "sketch"
        reason = "sketch: quantized, offloaded or sharded weights hold no gradients."
    else:
        on_host = capture.sums_on_host(device.type)
        wanted = needs.on_device("exact", sums_on_host=on_host)
        fits = wanted <= USABLE_SHARE * free
        if on_host:
            fits = fits and needs.exact_sums <= USABLE_SHARE * free_bytes(torch.device("cpu"))
        place = "this machine" if device.type == "cpu" else str(device)
        needed, there = memory(wanted), memory(free)
        compared = f"it needs {needed} besides the weights, and {there} are free on {place}"
        estimator = "exact" if fits else "sketch"
        reason = f"exact: {compared}." if fits else f"sketch: exact does not fit, {compared}."
    if estimator == "sketch":
        columns, needs = of_sketches, predicted(sketch_size=of_sketches)
    score = find_score(settings.plan.score)
    if estimator == "sketch" and score.needs == "whole gradients":
        raise UsageError(
            f"The score '{score.name}' needs whole gradients: {reason}",
            hint="Use --estimator exact, or another --score.",
        )
    return EstimatorChoice(
        estimator=estimator, reason=reason, sketch_size=columns, needs=needs, free_bytes=free
    )


def predict(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    probes: ProbeSet,
    settings: CaptureSettings,
    *,
    sketch_size: int,
    itemsize: int,
    processes: int = 1,
) -> MemoryNeeds:
    """Predict the memory of a run besides the weights: sums exactly, activations roughly."""
    groups = probes.summary.groups if settings.bootstrap else 0
    sums = sketches = formed = grouped = largest = 0
    omegas: dict[int, int] = {}
    tests = TestMatrices(size=sketch_size, seed=0)
    for item in candidates:
        short, width = item.max_rank, max(item.out_features, item.in_features)
        size, columns = item.matrices * short * width, tests.columns(width)
        sums, largest = sums + 2 * 4 * size, max(largest, size)
        sketches += 2 * 4 * item.matrices * short * columns
        grouped += group_bytes(item.matrices, short, min(sketch_size, width), groups)
        if columns < width:
            omegas[width] = 4 * width * columns
        if not observed_as(model, item):
            formed = max(formed, size * itemsize)

    # Activations, logits and loss of the largest batch.
    parts = [
        part
        for half in probes.halves
        for group in half
        for part in cut(by_length(group)[::processes], settings.batch_size)
    ]
    tokens = max(len(part) * max(len(item.input_ids) for item in part) for part in parts)
    counted = max(sum(item.counted_tokens for item in part) for part in parts)
    config = model.config.get_text_config()
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    blocks: dict[int | None, int] = {}
    for item in candidates:
        uses = per_token if item.matrices > 1 else 1
        widths = uses * (item.out_features + item.in_features)
        blocks[item.layer] = blocks.get(item.layer, 0) + widths
    # Inputs are often shared, which makes room for what norms, gates and attention hold.
    kept = sum(blocks.values())
    if settings.checkpointing:
        kept = len(blocks) * int(getattr(config, "hidden_size", 0)) + max(blocks.values())
    # Logits and their gradient, and what the loss computes with in float32.
    vocabulary = embedding_rows(model)
    logits = 3 * tokens * vocabulary * itemsize + 3 * 4 * min(counted * vocabulary, CHUNK_NUMBERS)
    return MemoryNeeds(
        activations=tokens * itemsize * kept + logits,
        exact_sums=sums + grouped,
        largest_gradient=2 * largest * itemsize,
        sketch_sums=sketches + grouped,
        sketch_work=sum(omegas.values()) + 2 * formed,
    )
