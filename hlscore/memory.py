"""The memory that is free, and how many threads fit it."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress

import psutil
import torch

from hlscore.control_groups import control_groups
from hlscore.threads import thread_limit

# Of each version of control groups: the limit, what is used of it, and in `memory.stat` the part
# of that which is a cache of files and given back at once.
_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
# The allocator and the kernels want some of what is free, and activations are an estimate.
USABLE_SHARE = 0.9


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; on the host, within the limits of its control groups."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + unused
    available = int(psutil.virtual_memory().available)
    for version, folder in control_groups("memory"):
        limit_file, used_file, cached = _GROUP_FILES[version]
        with suppress(OSError, ValueError):  # no such group, or `max`
            free = int((folder / limit_file).read_text()) - int((folder / used_file).read_text())
            with suppress(OSError, ValueError):
                figures = (folder / "memory.stat").read_text().splitlines()
                free += sum(int(n) for name, n in map(str.split, figures) if name == cached)
            available = min(available, max(0, free))
    return available


def fixed_weight(weights: Mapping[str, torch.Tensor]) -> str:
    """Name of a weight in host memory that is read-only, or shared with a file or a process.

    On Linux the system says it of every weight, elsewhere torch of those that it shares itself.

    Returns:
        Empty where all weights may be moved.
    """
    on_host = {name: weight for name, weight in weights.items() if weight.device.type == "cpu"}
    for name, weight in on_host.items():
        if weight.is_shared():  # type: ignore[no-untyped-call]
            return name
    if not on_host or sys.platform != "linux":
        return ""
    maps = []
    for item in psutil.Process().memory_maps(grouped=False):
        start, end = (int(part, 16) for part in item.addr.split("-"))
        maps.append((start, end, item.perms))
    maps.sort()
    for name, weight in on_host.items():
        place = bisect_right(maps, weight.data_ptr(), key=lambda item: item[0]) - 1
        _, end, permissions = maps[max(0, place)]
        if weight.data_ptr() < end and ("w" not in permissions or "s" in permissions):
            return name
    return ""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device or the host has no memory left."""
    # torch has no class of its own for the memory of the host.
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in words)


def empty_cache() -> None:
    """Give memory that torch holds without use back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def worker_count(job_bytes: int) -> int:
    """Threads that decompose matrices on the CPU, as many as fit its memory."""
    fitting = int(USABLE_SHARE * free_bytes(torch.device("cpu"))) // max(1, job_bytes)
    return max(1, min(thread_limit(), fitting))
