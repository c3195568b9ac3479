"""Which estimator a run uses, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from hlscore.errors import UsageError
from hlscore.gradients.memory import USABLE_SHARE, Needs, free_bytes, predict
from hlscore.gradients.sketch import default_sketch_size
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import Candidate
from hlscore.scores.registry import find_score
from hlscore.settings import Movement, RankSettings

# What `--movement auto` means where weights can be moved.
DEFAULT_MOVEMENT: Movement = "gradient"


def with_movement(
    model: PreTrainedModel, candidates: Sequence[Candidate], settings: RankSettings
) -> RankSettings:
    """Decide what is scored, gradients or the updates of trials.

    Args:
        model: The model; may be on the meta device where it is not loaded yet.

    Returns:
        The settings with `movement` decided. With trials each probe group is the data of one.
    """
    capture, score = settings.capture, settings.plan.score
    loaded = not all(weight.is_meta for weight in model.parameters())
    obstacle = ""
    if settings.model.load_in or any(item.quantized for item in candidates):
        obstacle = "quantized weights cannot be moved"
    elif settings.model.shard:
        obstacle = "sharded weights cannot be moved"
    elif loaded and any(weight.is_meta for weight in model.parameters()):
        obstacle = "offloaded weights cannot be moved"
    elif find_score(score).needs == "whole gradients":
        obstacle = f"the score '{score}' is one of gradients"
    if capture.movement == "trial" and obstacle:
        raise UsageError(
            f"--movement trial cannot be used: {obstacle}.",
            hint="Use --movement gradient, for instance with --score hls_share.",
        )
    movement = capture.movement
    if movement == "auto":
        movement = "gradient" if obstacle or capture.passes > 1 else DEFAULT_MOVEMENT
    groups = capture.trials // 2 if movement == "trial" else capture.groups
    return replace(settings, capture=replace(capture, movement=movement, groups=groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorChoice:
    """How gradients are captured.

    Attributes:
        estimator: `exact` or `sketch`.
        reason: Why, in a sentence.
        sketch_size: Columns of a sketch, of groups too.
        needs: Predicted memory besides the weights.
        free_bytes: Free memory that the choice went by.
    """

    estimator: str
    reason: str
    sketch_size: int
    needs: Needs
    free_bytes: int


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
    processes: Processes = Processes(),  # noqa: B008 - frozen
    stored: tuple[str, str] | None = None,
) -> EstimatorChoice:
    """The estimator that was asked for, or the exact one while it fits; alike in all processes.

    Args:
        model: The model; may be on the meta device.
        reserved_bytes: What the weights will take of the free memory; 0 once they are loaded.
        stored: Estimator and reason of the unfinished run that is resumed: memory that is free
            now does not change them.
    """
    capture = settings.capture
    largest = max(settings.plan.rank, *settings.plan.ranks, 1)
    size = capture.sketch_size or default_sketch_size(largest)
    needs = predict(
        model,
        candidates,
        probes,
        capture,
        sketch_size=size,
        itemsize=itemsize,
        processes=processes.size,
    )
    free = max(0, min(processes.gather(free_bytes(device))) - reserved_bytes)
    offloaded = not reserved_bytes and any(weight.is_meta for weight in model.parameters())
    if stored is not None:
        estimator, reason = stored
    elif capture.estimator != "auto":
        estimator, reason = capture.estimator, f"{capture.estimator}: asked for."
    elif capture.passes > 1:
        estimator = "sketch"
        reason = "sketch: several passes sharpen sketches, exact gradients need one."
    elif packed or offloaded:
        estimator = "sketch"
        reason = "sketch: quantized, offloaded or sharded weights hold no gradients."
    else:
        wanted = needs.on_device("exact", capture.accumulate_on)
        fits = wanted <= USABLE_SHARE * free
        host = needs.on_host("exact", capture.accumulate_on)
        if host and device.type != "cpu":
            fits = fits and host <= USABLE_SHARE * free_bytes(torch.device("cpu"))
        place = "this machine" if device.type == "cpu" else str(device)
        compared = (
            f"it needs {_size(wanted)} besides the weights, and {_size(free)} are free on {place}"
        )
        estimator = "exact" if fits else "sketch"
        reason = f"exact: {compared}." if fits else f"sketch: exact does not fit, {compared}."
    score = find_score(settings.plan.score)
    if estimator == "sketch" and score.needs == "whole gradients":
        raise UsageError(
            f"The score '{score.name}' needs whole gradients: {reason}",
            hint="Use --estimator exact, or another --score.",
        )
    return EstimatorChoice(
        estimator=estimator, reason=reason, sketch_size=size, needs=needs, free_bytes=free
    )


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
