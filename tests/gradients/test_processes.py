"""Two processes on one machine, started by torchrun, against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launched import torchrun
from problems import by_module, completions, differing, run_report
from two_processes import COUNTS, PAIRS, RUNS, options

from hlscore.inputs.model import resolve_device
from hlscore.processes import Processes, joined, local_rank, started_as
from hlscore.records import ScoreReport

Found = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both processes saw."""
    folder = tmp_path_factory.mktemp("pair")
    done = torchrun(folder, str(Path(__file__).parents[1] / "two_processes.py"), str(folder))
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    return first, second


def test_tensors_add_up_everywhere(found: Found) -> None:
    for part in found:
        sums = part["sums"]
        assert list(sums) == sorted(sums)
        assert sums["shared"].tolist() == [[3.0, 3.0]] * 3
        assert sums["narrow"].dtype == torch.bfloat16
        assert sums["narrow"].tolist() == [2.0] * 5
        assert sums["wide"].tolist() == pytest.approx([1 + 2e-12], rel=1e-15)
        assert torch.equal(sums["turned"], 3 * torch.arange(6.0).reshape(2, 3).T)
        # What only one process has counts as zero in the other.
        assert sums["only 0"].tolist() == [7.0, 7.0]
        assert sums["only 1"].tolist() == [8.0, 8.0]


def test_what_processes_tell_each_other(found: Found) -> None:
    for part in found:
        assert part["total"] == [3.0, 20.0]
        assert part["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert [part["share"] for part in found] == [["a", "c", "e"], ["b", "d"]]


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_two_processes_score_like_one(found: Found, name: str, run: str, size: str) -> None:
    together: ScoreReport = found[0]["rows"][name, run, size]
    assert found[1]["rows"][name, run, size] is None
    alone = run_report(name, completions(COUNTS[size]), options(run))
    assert_alike(together, alone)


def test_processes_that_break_off_at_different_moments_go_on(found: Found) -> None:
    alone = run_report("llama", completions(COUNTS["many"]), options("sketch"))
    assert_alike(found[0]["resumed"], alone)


def assert_alike(together: ScoreReport, alone: ScoreReport) -> None:
    """Equal but for the order in which float32 sums are taken."""
    assert together.probes.mean_loss == pytest.approx(alone.probes.mean_loss, rel=1e-6)
    assert together.probes.hash == alone.probes.hash
    found, expected = by_module(together.rows), by_module(alone.rows)
    assert [row.module for row in together.rows] == [row.module for row in alone.rows]
    capture = together.run.settings["capture"]
    for module, row in found.items():
        # Steps follow rounding: a gradient near zero is scaled up as any other.
        loose = capture["movement"] == "trial"
        pair = {module: row}, {module: expected[module]}
        columns = ("hls", "tail_energy", "grad_energy", "stable_rank", "rgn")
        assert not differing(*pair, 1e-3 if loose else 1e-5, *columns, floor=1e-5)
    # Group sketches are kept in bfloat16, and rounded in each process.
    assert not differing(found, expected, 0.05, "hls_stderr", floor=1e-8)


def test_one_process_needs_no_others() -> None:
    alone = Processes()
    tensors = {"a": torch.ones(2)}
    assert alone.add_up(tensors) == tensors
    assert (alone.total([1.0]), alone.gather(3), alone.share("abc")) == ([1.0], [3], "abc")
    assert alone.is_main


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "2"}, (2, 4)),
        ({"WORLD_SIZE": "four", "RANK": "2"}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": ""}, (0, 1)),
    ],
)
def test_processes_are_told_by_the_environment(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    me = started_as()
    assert (me.rank, me.size) == expected
    assert local_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank() == (1 if me.size > 1 else None)
    if me.size == 1:
        with joined() as again:
            assert again == me


@pytest.mark.parametrize(
    ("size", "gpus", "asked", "expected"),
    [
        ("4", 4, "auto", "cuda:2"),
        ("4", 4, "cuda", "cuda:2"),
        ("4", 4, "cuda:1", "cuda:1"),
        ("4", 1, "auto", "cuda:0"),  # they share it
        ("1", 4, "auto", "cuda:0"),
        ("4", 0, "auto", "cpu"),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, size: str, gpus: int, asked: str, expected: str
) -> None:
    for name, value in {"WORLD_SIZE": size, "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device(asked) == torch.device(expected)
