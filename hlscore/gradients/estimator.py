"""Which estimator a run uses, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hlscore.errors import UsageError
from hlscore.gradients.memory import USABLE_SHARE, Needs, free_bytes, predict
from hlscore.gradients.sketch import default_sketch_size
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import Candidate
from hlscore.settings import RankSettings

# Scores of single gradient entries: no sketch tells them.
_NEEDS_GRADIENT = ("taylor", "l1_adam")
_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
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
) -> Choice:
    """Choose the estimator that was asked for, or the exact one while it fits the memory.

    Args:
        model: The model; may be on the meta device.
        candidates: Modules to capture.
        probes: The probe examples.
        settings: Settings of the run.
        device: Where the model is, or goes.
        reserved_bytes: What the weights will take of the free memory; 0 once they are loaded.
        itemsize: Bytes of an activation.
        packed: Whether weights are quantized, offloaded or sharded, so that they hold no gradient.
        processes: This process among those that share the probes.
        stored: Estimator and reason of the unfinished run that is resumed: memory that is free
            now does not change them.

    Returns:
        The choice; the same in every process.

    Raises:
        UsageError: The score needs gradients, and these cannot be formed.
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
    estimator, reason = stored or _choose(settings, needs, free, device, packed or offloaded)
    if estimator == "sketch" and settings.plan.score in _NEEDS_GRADIENT:
        raise UsageError(
            f"The score '{settings.plan.score}' needs whole gradients: {reason}",
            hint="Use --estimator exact, or another --score.",
        )
    return Choice(
        estimator=estimator, reason=reason, sketch_size=size, needs=needs, free_bytes=free
    )


def _choose(
    settings: RankSettings, needs: Needs, free: int, device: torch.device, packed: bool
) -> tuple[str, str]:
    capture = settings.capture
    if capture.estimator != "auto":
        return capture.estimator, f"{capture.estimator}: asked for."
    if capture.passes > 1:
        return "sketch", "sketch: several passes sharpen sketches, exact gradients need one."
    if packed:
        return "sketch", "sketch: quantized, offloaded or sharded weights hold no gradients."
    wanted = needs.on_device("exact", capture.accumulate_on)
    fits = wanted <= USABLE_SHARE * free
    host = needs.on_host("exact", capture.accumulate_on)
    if host and device.type != "cpu":
        fits = fits and host <= USABLE_SHARE * free_bytes(torch.device("cpu"))
    place = "this machine" if device.type == "cpu" else str(device)
    compared = (
        f"it needs {_size(wanted)} besides the weights, and {_size(free)} are free on {place}"
    )
    if fits:
        return "exact", f"exact: {compared}."
    return "sketch", f"sketch: exact does not fit, {compared}."


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.0f} MiB"
