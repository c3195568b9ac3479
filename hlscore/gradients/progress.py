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
    check_same_run,
    nothing_to_resume,
    remove,
)

_METADATA_KEY = "hlscore"
# Writing may cost a run about this share of its time, however large the sums are.
_LARGEST_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where an unfinished run is stored.

    Attributes:
        folder: Folder of the results.
        every_seconds: Time between two writes.
        resume: Go on with the run that is stored there.
    """

    folder: Path
    every_seconds: float
    resume: bool


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RunPosition:
    """The next batch to run.

    Attributes:
        number: Pass over the probes, from 1.
        half: Half of the probes.
        group: Group within the half.
        batch: Batch within the group.
    """

    number: int = 1
    half: int = 0
    group: int = 0
    batch: int = 0

    def __str__(self) -> str:
        return f"probe group {self.group + 1} of half {self.half + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is stored besides the sums.

    Attributes:
        position: The next batch to run.
        loss: Sum of the losses so far, in nats.
        batch_size: Examples per batch that fit so far.
        tokens: Tokens that the sum of the losses holds, where these are not all.
        rate: Learning rate of the trials; 0 for gradients.
    """

    position: RunPosition
    loss: float
    batch_size: int
    tokens: float = 0.0
    rate: float = 0.0


class ProgressFile:
    """The progress of one process of a run.

    Each pass has a file of its own, so that processes that were killed at different moments find
    a pass that all of them have stored.

    Args:
        folder: Where results will go; made when first needed.
        identity: What the run is; a file of another run is refused.
        every_seconds: Time between two writes; 0 writes after every batch.
        together: Whether all processes must store the same place.

    Attributes:
        earlier_seconds: What the run took before it was stored last; 0 unless it was resumed.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, object],
        processes: Processes,
        *,
        every_seconds: float,
        together: bool = False,
    ) -> None:
        self._folder, self._processes = folder, processes
        self._identity = json.loads(json.dumps(identity))
        self._every, self._together = every_seconds, together
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        self._made_folder = False
        self.earlier_seconds = 0.0

    def path(self, number: int) -> Path:
        """Where the progress of this process in a pass is stored."""
        return self._folder / f"{_stem(self._processes)}{number}.safetensors"

    def is_due(self) -> bool:
        """Whether enough time has passed since progress was stored last."""
        wait = max(self._every, self._cost / _LARGEST_SHARE) if self._every else 0.0
        due = time.monotonic() - self._last >= wait
        return self._processes.gather(due)[0] if self._together else due

    def save(self, run: RunState, state: Mapping[str, torch.Tensor]) -> None:
        """Store progress now."""
        began = time.monotonic()
        path = self.path(run.position.number)
        stage = path.with_name(f"{path.name}{HALF_WRITTEN}")
        seconds = self.earlier_seconds + began - self._began
        header = {"identity": self._identity, "progress": asdict(run) | {"seconds": seconds}}
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        try:
            if not self._folder.exists():
                self._folder.mkdir(parents=True, exist_ok=True)  # another process may be first
                self._made_folder = True
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
        """State and sums of the latest pass that every process has stored."""
        stored = self._processes.gather(_stored_passes(self._folder, self._processes))
        common = set.intersection(*({*numbers} or {start.position.number} for numbers in stored))
        if not any(stored) or not common:
            raise nothing_to_resume(self._folder)
        path = self.path(max(common))
        run, state = start, {}
        if path.exists():
            header = _read_header(path)
            check_same_run(self._folder, header["identity"], self._identity)
            run = _state_of(header)
            self.earlier_seconds = float(header["progress"].get("seconds", 0.0))
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

    def forget(self, *, before: int | None = None) -> None:
        """Remove stored progress, with `before` only that of earlier passes."""
        for number in _stored_passes(self._folder, self._processes):
            if before is None or number < before:
                self.path(number).unlink(missing_ok=True)
        if before is None:
            for left in self._folder.glob(f"{_stem(self._processes)}*{HALF_WRITTEN}"):
                remove(left)
            if self._made_folder and not any(self._folder.iterdir()):
                self._folder.rmdir()


def stored_identity(folder: Path, processes: Processes) -> dict[str, Any]:
    """Identity of the run stored in a folder, the same in all processes; empty for none."""
    own: dict[str, Any] = {}
    for number in _stored_passes(folder, processes)[-1:]:
        own = _read_header(folder / f"{_stem(processes)}{number}.safetensors")["identity"]
    return next((part for part in processes.gather(own) if part), {})


def _stem(processes: Processes) -> str:
    return f"{PROGRESS_PREFIX}-{processes.rank}-of-{processes.size}-pass-"


def _stored_passes(folder: Path, processes: Processes) -> list[int]:
    """Passes of which this process has stored progress, in order."""
    stem = _stem(processes)
    names = (path.stem.removeprefix(stem) for path in folder.glob(f"{stem}*.safetensors"))
    return sorted(int(number) for number in names if number.isdecimal())


def _read_header(path: Path) -> dict[str, Any]:
    """Read what a progress file says about its run."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()[_METADATA_KEY])
            _state_of(header)
            header["identity"].keys()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"The stored progress '{path}' cannot be read: {first_line(error)}",
            hint="Start anew with --force.",
        ) from error
    return header


def _state_of(header: Mapping[str, Any]) -> RunState:
    found = header["progress"]
    return RunState(
        position=RunPosition(**found["position"]),
        loss=float(found["loss"]),
        batch_size=int(found["batch_size"]),
        tokens=float(found["tokens"]),
        rate=float(found["rate"]),
    )
