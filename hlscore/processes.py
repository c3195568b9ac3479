"""Several processes that share the probes of one run, on top of `torch.distributed`.

Sums over the probes are linear: each process adds up its share of every probe group, and the
sums meet once, at the end. Nothing is sent while batches run.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from hlscore.errors import EXIT_COULD_NOT_RUN, CaptureError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

_WATCH_SECONDS = 1.0
# How long the main process may need to find the error that this one has found.
_MAIN_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those of a run: its number, from 0, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process scores, writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Take every `size`-th item, from number `rank` on."""
        return items[self.rank :: self.size]

    def add_up(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Sums of the tensors of all processes by name, the same in every process.

        Where a process lacks one that others have, it counts as zero.

        Args:
            tensors: Tensors of this process; changed in place.
        """
        if self.size == 1:
            return dict(tensors)
        import torch
        from torch import distributed

        described = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        union = {name: what for part in self.gather(described) for name, what in part.items()}
        device = next((t.device for t in tensors.values()), torch.device("cpu"))
        sums = {}
        for name, (shape, dtype) in sorted(union.items()):
            own = tensors.get(name)
            own = torch.zeros(shape, dtype=dtype, device=device) if own is None else own
            total = own.contiguous()  # a message is sent in the order of memory
            distributed.all_reduce(total)
            sums[name] = own if total is own else own.copy_(total)
        return sums

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers of all processes up, place by place."""
        return [sum(part) for part in zip(*self.gather(list(numbers)), strict=True)]

    def gather(self, item: Item) -> list[Item]:
        """Give what each process holds to all of them, in order."""
        if self.size == 1:
            return [item]
        from torch import distributed

        everywhere: list[Item] = [item] * self.size
        distributed.all_gather_object(everywhere, item)
        return everywhere


def started_as() -> Processes:
    """Read from the environment, as `torchrun` sets it, which process this is; needs no torch."""
    size = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0")
    if not (size.isdecimal() and rank.isdecimal()) or int(size) < 2:
        return Processes()
    return Processes(rank=int(rank), size=int(size))


def local_rank() -> int | None:
    """Number of this process on its host, as `torchrun` sets it; `None` when it runs alone."""
    number = os.environ.get("LOCAL_RANK", "")
    return int(number) if number.isdecimal() and started_as().size > 1 else None


@contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes that `torchrun` started, for the length of a run."""
    found = started_as()
    if found.size == 1:
        yield found
        return
    import torch
    from torch import distributed

    _end_with_launcher()
    own = distributed.is_initialized()  # a caller of the Python API may have done it
    if not own:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend)
    try:
        yield found
    except RuntimeError as error:
        if isinstance(error, distributed.DistBackendError) or "gloo" in str(error):
            raise CaptureError(
                f"Process {found.rank} lost another one of the {found.size}.",
                hint="That one says why it ended.",
            ) from error
        raise
    finally:
        if not own:
            distributed.destroy_process_group()


def wait_for_main() -> None:
    """Wait for `torchrun` to end this process because the main one has failed, which says why.

    Were this one the first to end, `torchrun` would end the main one before it has spoken.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_MAIN_SECONDS)


def leave(code: int) -> NoReturn:
    """End this process, one of several, at once: exit handlers run, the interpreter stays up.

    A thread of gloo that lets go of a tensor while the interpreter goes down aborts its process
    (pytorch/pytorch#190489); `torchrun` would then end the main one before it has written.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a closed pipe
            stream.flush()
    os._exit(code)


def _end_with_launcher() -> None:
    """End this process when the `torchrun` that started it is gone.

    Without it, processes of a launcher that was killed would wait for each other for minutes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # started by hand: the parent may well end
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_SECONDS)
        sys.stderr.write("error: torchrun has ended, and this process with it.\n")
        sys.stderr.flush()
        os._exit(EXIT_COULD_NOT_RUN)

    threading.Thread(target=watch, daemon=True, name="hlscore-launcher").start()
