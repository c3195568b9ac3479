"""One of the two processes that `test_processes.py` starts: does everything, stores what it saw."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import conftest  # noqa: F401 - the same environment as tests have
import problems
import torch
from families import FAMILIES
from problems import completions, settings
from tokens import byte_tokenizer

from hlscore.flow.rank import rank_model
from hlscore.gradients.progress import ProgressFile
from hlscore.inputs.identity import identify
from hlscore.processes import Processes, joined
from hlscore.settings import RankSettings
from hlscore.steps import Silent
from hlscore.unfinished import UnfinishedRun

TRIALS = {
    "movement": "trial", "trials": 2, "trial_steps": 2, "trial_rate": 1e-3,
    "trial_optimizer": "rms",
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {**problems.RUNS, "trial": TRIALS}
# Groups of several examples, and of one, which only one of the processes has.
COUNTS = {"many": 14, "few": 6}
PAIRS = (("llama", "many"), ("gpt2", "many"), ("qwen3_moe", "many"), ("qwen3_moe", "few"))


def options(run: str) -> RankSettings:
    """Settings of a run."""
    return settings(groups=3, batch_size=2, bootstrap=10, **RUNS[run])


class BrokenError(Exception):
    """Raised in the middle of a run."""


def sums(me: Processes) -> dict[str, torch.Tensor]:
    """Sums of tensors of several dtypes and shapes, two of which only one process has."""
    own = {
        "shared": torch.full((3, 2), 1.0 + me.rank),
        "narrow": torch.full((5,), 0.5 + me.rank, dtype=torch.bfloat16),
        "wide": torch.tensor([1e-12 + me.rank], dtype=torch.float64),
        "turned": torch.arange(6.0).reshape(2, 3).T * (1 + me.rank),
        f"only {me.rank}": torch.full((2,), 7.0 + me.rank),
    }
    found = me.add_up(own)
    assert found["shared"] is own["shared"], "sums take no memory of their own"
    return found


def rows(
    me: Processes, name: str, run: str, count: int, storage: UnfinishedRun | None = None
) -> Any:
    """Score a model together; only the main process gets a report."""
    model = FAMILIES[name].build()
    found = rank_model(
        model, byte_tokenizer(), identify(model, "test", None), completions(count), options(run),
        Silent(), processes=me, storage=storage,
    )  # fmt: skip
    assert (found is not None) == me.is_main
    return None if found is None else found.report


def resumed(me: Processes, folder: Path) -> Any:
    """A run whose processes break off at different moments, and what it comes to."""
    real, saved = ProgressFile.save, []
    storage = UnfinishedRun(folder=folder, every_seconds=0, resume=False)

    def breaking(self: ProgressFile, *args: Any) -> None:
        real(self, *args)
        saved.append(args)
        if len(saved) == 2 + 2 * me.rank:
            raise BrokenError

    with patch.object(ProgressFile, "save", breaking), suppress(BrokenError):
        rows(me, "llama", "sketch", COUNTS["many"], storage)
    me.gather(None)  # both have broken off
    return rows(me, "llama", "sketch", COUNTS["many"], replace(storage, resume=True))


def main(folder: Path) -> None:
    """Do everything with the other process."""
    with joined() as me:
        found: dict[str, Any] = {
            "sums": sums(me),
            "total": me.total([1.0 + me.rank, 10.0]),
            "gathered": me.gather({"rank": me.rank}),
            "share": list(me.share("abcde")),
        }
        found["rows"] = {
            (name, run, size): rows(me, name, run, COUNTS[size])
            for name, size in PAIRS
            for run in RUNS
        }
        found["resumed"] = resumed(me, folder / "run")
        torch.save(found, folder / f"{me.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
