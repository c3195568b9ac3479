"""The memory that a probe run needs, predicted before it starts, and the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from hlscore.gradients.groups import group_bytes
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sources import formed_gradients
from hlscore.objectives.likelihood import CHUNK_NUMBERS
from hlscore.probes.batches import by_length, cut
from hlscore.probes.units import ProbeSet
from hlscore.records import Candidate
from hlscore.settings import CaptureSettings
from hlscore.threads import thread_limit

_CGROUP = Path("/sys/fs/cgroup")
# The allocator and the kernels want some of what is free, and activations are an estimate.
USABLE_SHARE = 0.9
_HOST_MEMORY_WORDS = ("not enough memory", "can't allocate memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Predicted memory of a run besides the weights, in bytes.

    Attributes:
        activations: Activations and logits of the largest batch, an estimate.
        exact_sums: Float32 sums of both halves of the exact estimator.
        exact_groups: Group sketches of the exact estimator.
        largest_gradient: The largest gradient that is formed at a time.
        sketch_sums: Sketches of both halves, their test matrices, and those of the groups.
    """

    activations: int
    exact_sums: int
    exact_groups: int
    largest_gradient: int
    sketch_sums: int

    def on_device(self, estimator: str, accumulate_on: str) -> int:
        """Memory that an estimator takes on the device of the model."""
        if estimator == "sketch":
            return self.activations + self.sketch_sums
        sums = self.exact_sums + self.exact_groups if accumulate_on == "device" else 0
        return self.activations + self.largest_gradient + sums

    def on_host(self, estimator: str, accumulate_on: str) -> int:
        """Memory that an estimator takes on the host, where that is not the device."""
        host = estimator == "exact" and accumulate_on == "host"
        return self.exact_sums + self.exact_groups if host else 0


def predict(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    probes: ProbeSet,
    settings: CaptureSettings,
    *,
    sketch_size: int,
    itemsize: int,
    processes: int = 1,
) -> Needs:
    """Predict the memory of a run besides the weights: sums exactly, activations roughly.

    Args:
        model: The model; may be on the meta device.
    """
    groups = probes.summary.groups if settings.bootstrap else 0
    sketches = formed = 0
    tests: dict[int, int] = {}
    matrices = TestMatrices(size=sketch_size, seed=0)
    grouped = 0
    for item in candidates:
        short, width = item.max_rank, max(item.out_features, item.in_features)
        columns = matrices.columns(width)
        sketches += 2 * 4 * item.matrices * short * columns
        grouped += group_bytes(item.matrices, short, min(sketch_size, width), groups)
        if columns < width:
            tests[width] = 4 * width * columns
        if formed_gradients(model, item):
            formed = max(formed, item.matrices * short * width * itemsize)
    sizes = [item.matrices * item.out_features * item.in_features for item in candidates]
    return Needs(
        activations=_activations(model, candidates, probes, settings, itemsize, processes),
        exact_sums=2 * 4 * sum(sizes),
        exact_groups=grouped,
        largest_gradient=2 * max(sizes) * itemsize,
        sketch_sums=sketches + grouped + sum(tests.values()) + 2 * formed,
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; on the host, within the limit of its control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + unused
    available = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, max(0, limit - used))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device or the host has no memory left."""
    on_host = any(words in str(error) for words in _HOST_MEMORY_WORDS)
    return on_host or isinstance(error, torch.OutOfMemoryError)


def empty_cache() -> None:
    """Give memory that torch holds without use back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def worker_count(job_bytes: int) -> int:
    """Threads that decompose matrices on the CPU, as many as fit its memory."""
    fitting = int(USABLE_SHARE * free_bytes(torch.device("cpu"))) // max(1, job_bytes)
    return max(1, min(thread_limit(), fitting))


def _cgroup_number(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _activations(
    model: PreTrainedModel,
    candidates: Sequence[Candidate],
    probes: ProbeSet,
    settings: CaptureSettings,
    itemsize: int,
    processes: int,
) -> int:
    """Bytes of activations, logits and loss of the largest batch."""
    parts = [
        part
        for half in probes.halves
        for group in half
        for part in cut(by_length(group)[::processes], settings.batch_size)
    ]
    tokens = max(len(part) * max(len(item.input_ids) for item in part) for part in parts)
    counted = max(sum(item.counted_tokens for item in part) for part in parts)
    config = model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", 0))
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    blocks: dict[int | None, int] = {}
    for item in candidates:
        uses = per_token if item.matrices > 1 else 1
        widths = uses * (item.out_features + item.in_features)
        blocks[item.layer] = blocks.get(item.layer, 0) + widths
    # Inputs are often shared, which makes room for what norms, gates and attention hold.
    inside = list(blocks.values())
    kept = len(blocks) * hidden + max(inside) if settings.checkpointing else sum(inside)
    # Logits and their gradient, and what the loss computes with in float32.
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    wide = 4 * min(counted * vocabulary, CHUNK_NUMBERS)
    return tokens * itemsize * kept + 3 * tokens * vocabulary * itemsize + 3 * wide
