"""Progress files: everything that an unfinished probe run needs to go on, written atomically."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hlscore.errors import ArtifactError, UsageError, first_line
from hlscore.processes import Processes
from hlscore.unfinished import (
    HALF_WRITTEN,
    PROGRESS_PREFIX,
    UnfinishedRun,
    check_same_run,
    nothing_to_resume,
    remove,
)

_METADATA_KEY = "hlscore"
# Writing may cost a run about this share of its time, however large the sums are.
_LARGEST_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RunPosition:
    """The next batch to run."""

    half: int = 0
    group: int = 0
    batch: int = 0

    def __str__(self) -> str:
        return f"probe group {self.group + 1} of half {self.half + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is stored besides the sums."""

    position: RunPosition
    loss: float  # sum of the losses so far, in nats
    batch_size: int  # examples per batch that fit so far
    tokens: float = 0.0  # tokens that the sum of the losses holds, where these are not all
    rate: float = 0.0  # learning rate of the trials; 0 for gradients
    # Mean held-out loss before and after a short training at the rate that was found.
    search: tuple[float, float] | None = None
    # Tokens whose log-probability under the policy that sampled them is known, and those of them
    # whose ratio to it is beyond the clip.
    known: int = 0
    beyond: int = 0


class ProgressFile:
    """The progress of one process of a run.

    Args:
        together: Whether all processes must store the same place.

    Attributes:
        identity: What decides the outcome of the run, set before progress is stored or loaded.
        earlier_seconds: What the run took before it was stored last; 0 unless it was resumed.
    """

    def __init__(
        self, storage: UnfinishedRun, processes: Processes, *, together: bool = False
    ) -> None:
        self._folder, self._every = storage.folder, storage.every_seconds
        self._processes, self._together = processes, together
        self.identity: Mapping[str, object] = {}
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        self.earlier_seconds = 0.0

    def is_due(self) -> bool:
        """Whether enough time has passed since progress was stored last."""
        wait = max(self._every, self._cost / _LARGEST_SHARE) if self._every else 0.0
        due = time.monotonic() - self._last >= wait
        return self._processes.gather(due)[0] if self._together else due

    def save(self, run: RunState, state: Mapping[str, torch.Tensor]) -> None:
        """Store progress now."""
        began = time.monotonic()
        path = self._path
        stage = path.with_name(f"{path.name}{HALF_WRITTEN}")
        seconds = self.earlier_seconds + began - self._began
        header = {"identity": self.identity, "progress": asdict(run) | {"seconds": seconds}}
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove(stage)
            stage.mkdir()
            save_file(tensors, stage / path.name, metadata={_METADATA_KEY: json.dumps(header)})
            (stage / path.name).replace(path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"Progress cannot be stored in '{self._folder}': {first_line(error)}",
                hint="Make room, choose another --out, or use --save-every 0.",
            ) from error
        finally:
            remove(stage)
        self._last = time.monotonic()
        self._cost = self._last - began

    def load(
        self, start: RunState, device: torch.device
    ) -> tuple[RunState, dict[str, torch.Tensor]]:
        """State and sums that this process has stored; `start` where others alone have any."""
        path = self._path
        if not any(self._processes.gather(path.exists())):
            others = sorted(self._folder.glob(f"{PROGRESS_PREFIX}-*{path.suffix}"))
            if not any(self._processes.gather(bool(others))):
                raise nothing_to_resume(self._folder)
            by = f" '{others[0].name}'" if others else ""
            raise UsageError(
                f"The progress{by} in '{self._folder}' was stored by another number of processes, "
                f"or by another version of hlscore; this run has {self._processes.size}.",
                hint="Resume with as many processes (torchrun --nproc-per-node N), or start anew "
                "with --force.",
            )
        run, state = start, {}
        if path.exists():
            identity, run, self.earlier_seconds = _read_header(path)
            check_same_run(self._folder, identity, json.loads(json.dumps(self.identity)))
            with safe_open(path, framework="pt") as file:
                # Copied: in the file's own memory they are not aligned, and kernels that depend
                # on that would round differently from then on.
                state = {
                    name: file.get_tensor(name).to(device, copy=True)
                    for name in file.keys()  # noqa: SIM118
                }
        if self._together and len({part.position for part in self._processes.gather(run)}) > 1:
            raise UsageError(
                f"The processes of the unfinished run in '{self._folder}' were stopped while they "
                "stored their progress.",
                hint="Start anew with --force.",
            )
        return run, state

    def stored_identity(self) -> dict[str, Any]:
        """Identity of the run that is stored, the same in all processes; empty for none."""
        own = _read_header(self._path)[0] if self._path.exists() else {}
        return next((part for part in self._processes.gather(own) if part), {})

    @property
    def _path(self) -> Path:
        """Where the progress of this process is stored."""
        rank, size = self._processes.rank, self._processes.size
        return self._folder / f"{PROGRESS_PREFIX}-{rank}-of-{size}.safetensors"


def _read_header(path: Path) -> tuple[dict[str, Any], RunState, float]:
    """What a progress file says: the identity of its run, the state, and its seconds so far."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()[_METADATA_KEY])
        identity, found = dict(header["identity"]), header["progress"]
        search = None
        if found["search"] is not None:
            before, after = map(float, found["search"])
            search = before, after
        state = RunState(
            position=RunPosition(**found["position"]),
            loss=float(found["loss"]),
            batch_size=int(found["batch_size"]),
            tokens=float(found["tokens"]),
            rate=float(found["rate"]),
            search=search,
            known=int(found["known"]),
            beyond=int(found["beyond"]),
        )
        return identity, state, float(found["seconds"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"The stored progress '{path}' cannot be read: {first_line(error)}",
            hint="Start anew with --force.",
        ) from error
