"""Runs that break off and go on, and the files that keep their progress."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from problems import RUNS, by_module, completions, run_report, settings
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hlscore.errors import ArtifactError, UsageError
from hlscore.gradients import estimator, progress
from hlscore.gradients.progress import ProgressFile, RunPosition, RunState
from hlscore.probes import units
from hlscore.processes import Processes
from hlscore.records import ScoreReport
from hlscore.settings import PlanSettings, RankSettings
from hlscore.steps import Silent
from hlscore.unfinished import UnfinishedRun, first_difference, remove_unfinished, unfinished_runs
from hlscore.views import progress as lines

EXAMPLES = completions(12)
CPU = torch.device("cpu")


class BrokenError(Exception):
    """Raised in the middle of a run."""


def options(name: str) -> RankSettings:
    """Two groups per half of two batches each."""
    run = {"estimator": "auto", "sketch_size": 8} | RUNS.get(name, {})
    return settings(groups=2, batch_size=2, bootstrap=10, **run)


class Display(Silent):
    """Raises after some batches, or when scoring begins."""

    def __init__(self, *, batches: int | None = None, scoring: bool = False) -> None:
        self._left = batches
        self._scoring = scoring
        self.probing = True

    def start(self, what: str, *_: object) -> None:
        self.probing = what == "probing"
        if what == "scoring" and self._scoring:
            raise BrokenError

    def advance(self, _: int) -> None:
        if self._left is not None and self.probing:
            self._left -= 1
            if self._left < 0:
                raise BrokenError


def stored_run(
    folder: Path,
    run: RankSettings,
    *,
    resume: bool,
    model: PreTrainedModel | None = None,
    display: Silent | None = None,
    count: int = 12,
) -> ScoreReport:
    """Score a model, and store the progress after every batch."""
    storage = UnfinishedRun(folder=folder, every_seconds=0, resume=resume)
    return run_report(model or "qwen3_moe", completions(count), run, display, storage=storage)


def broken_run(
    folder: Path, run: RankSettings, model: PreTrainedModel | None = None, **after: Any
) -> None:
    """Start a run that breaks off; see `Display`."""
    with pytest.raises(BrokenError):
        stored_run(folder, run, resume=False, model=model, display=Display(**after))


def undisturbed(name: str) -> ScoreReport:
    return run_report("qwen3_moe", EXAMPLES, options(name))


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_break_off_after_every_write_end_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[RunPosition] = []

    def breaking(self: ProgressFile, found: RunState, state: Any) -> None:
        real(self, found, state)
        places.append(found.position)
        raise BrokenError

    real = ProgressFile.save
    monkeypatch.setattr(ProgressFile, "save", breaking)
    run, report = options(name), None
    for attempt in range(60):
        try:
            report = stored_run(tmp_path, run, resume=attempt > 0)
            break
        except BrokenError:
            assert unfinished_runs(tmp_path)
    expected = [
        RunPosition(half=half, group=group, batch=batch)
        for half in (0, 1)
        for group in (0, 1)
        for batch in (1, 2)
    ]
    assert places == expected
    assert report is not None
    other = undisturbed(name)
    assert report.rows == other.rows
    assert report.probes == other.probes
    assert unfinished_runs(tmp_path)  # until the results are written


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_break_off_between_writes_end_alike(name: str, tmp_path: Path) -> None:
    expected = undisturbed(name).rows
    broken_run(tmp_path, options(name), batches=3)
    (path,) = tmp_path.iterdir()
    assert path.name == ".hlscore-progress-0-of-1.safetensors"
    assert stored_run(tmp_path, options(name), resume=True).rows == expected
    broken_run(tmp_path, options(name), scoring=True)
    assert stored_run(tmp_path, options(name), resume=True).rows == expected


@pytest.mark.parametrize(("first", "later"), [(10**12, 0), (0, 10**12)])
def test_resumed_run_keeps_the_estimator_that_was_chosen(
    first: int, later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chosen = options("auto"), "exact" if first else "sketch"
    monkeypatch.setattr(estimator, "free_bytes", lambda _: first)
    expected = undisturbed("auto")
    broken_run(tmp_path, run, batches=3)
    monkeypatch.setattr(estimator, "free_bytes", lambda _: later)
    assert undisturbed("auto").run.estimator != chosen
    report = stored_run(tmp_path, run, resume=True)
    assert report.run.estimator == chosen
    assert report.run.notes == expected.run.notes
    assert report.rows == expected.rows


def test_batches_that_fitted_are_remembered(tmp_path: Path) -> None:
    model, run = FAMILIES["qwen3_moe"].build(), options("sketch")

    def limit(module: Any, args: Any, output: torch.Tensor) -> None:
        if len(output) > 1:
            raise torch.OutOfMemoryError

    model.model.layers[0].self_attn.o_proj.register_forward_hook(limit)
    broken_run(tmp_path, run, model, batches=4)
    report = stored_run(tmp_path, run, resume=True)
    assert any("were halved down to 1" in note for note in report.run.notes)


def test_progress_is_not_written_before_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved, real = [0.0], list[float](), progress.save_file

    def write(*args: Any, **kwargs: Any) -> None:
        saved.append(now[0])
        now[0] += 2.0  # a write takes two seconds
        real(*args, **kwargs)

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "save_file", write)
    file = progress_file(tmp_path, every_seconds=10)
    for second in range(120):
        now[0] = max(now[0], float(second))
        if file.is_due():
            file.save(PROGRESS, {})
    # Once after ten seconds; then a write may take a twentieth of the time.
    assert saved == [10.0, 52.0, 94.0]


def progress_file(
    folder: Path, processes: Processes | None = None, *, every_seconds: float = 1
) -> ProgressFile:
    storage = UnfinishedRun(folder=folder, every_seconds=every_seconds, resume=True)
    return ProgressFile(storage, processes or Processes())


PROGRESS = RunState(
    position=RunPosition(group=2, batch=1), loss=1.5, batch_size=4, known=7, beyond=2
)


def test_other_models_probes_and_settings_are_refused_by_name(tmp_path: Path) -> None:
    run = options("exact")
    broken_run(tmp_path, run, batches=2)
    other = FAMILIES["qwen3_moe"].build(seed=1)
    with pytest.raises(UsageError, match=r"another one: model\.fingerprint\.weights was sha256"):
        stored_run(tmp_path, run, resume=True, model=other)
    with pytest.raises(UsageError, match="another one: probes was sha256"):
        stored_run(tmp_path, run, resume=True, count=13)
    with pytest.raises(UsageError, match=r"settings\.plan\.rank was 3, now it is 2") as found:
        stored_run(tmp_path, replace(run, plan=PlanSettings(budget="0.5", rank=2)), resume=True)
    assert "--force" in (found.value.hint or "")
    assert unfinished_runs(tmp_path)


def test_differences_are_named_where_they_are() -> None:
    stored = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": "x" * 90}
    assert not first_difference(stored, json.loads(json.dumps(stored)))
    assert first_difference(stored, stored | {"a": 2}) == "a was 1, now it is 2"
    changed = stored | {"b": {"c": [1, 3], "d": None}}
    assert first_difference(stored, changed) == "b.c was [1, 2], now it is [1, 3]"
    changed = stored | {"b": {"c": [1, 2], "d": 0.5}}
    assert first_difference(stored, changed) == "b.d was not set, now it is 0.5"
    assert first_difference(stored, {**stored, "z": 1}) == "z was not set, now it is 1"
    assert len(first_difference(stored, stored | {"e": "y" * 90})) < 110


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="no unfinished run in") as found:
            stored_run(folder, options("exact"), resume=True)
        assert "--resume" in (found.value.hint or "")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "no json",
        "[]",
        '{"identity": {}, "progress": {"position": {"n": 1}, "loss": 1, "batch_size": 1}}',
        '{"identity": {}, "progress": {"position": {}, "loss": 1.0}}',
        '{"identity": {}, "progress": {"position": {}, "loss": "much", "batch_size": 1}}',
        '{"identity": 3, "progress": {"position": {}, "loss": 1.0, "batch_size": 1}}',
    ],
)
def test_other_safetensors_are_no_progress(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / ".hlscore-progress-0-of-1.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=None if text is None else {"hlscore": text})
    with pytest.raises(ArtifactError, match=r"progress .* cannot be read"):
        progress_file(tmp_path).load(PROGRESS, CPU)


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_damaged_files_are_one_clear_error(left: float, tmp_path: Path) -> None:
    run = options("sketch")
    broken_run(tmp_path, run, batches=2)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(ArtifactError, match=r"progress .* cannot be read") as found:
        stored_run(tmp_path, run, resume=True)
    assert "--force" in (found.value.hint or "")


def test_leftovers_are_harmless(tmp_path: Path) -> None:
    run = options("exact")
    left = tmp_path / ".hlscore-progress-0-of-1.safetensors.unfinished"
    left.write_bytes(b"half")
    assert not unfinished_runs(tmp_path)
    with pytest.raises(UsageError, match="no unfinished run"):
        stored_run(tmp_path, run, resume=True)
    broken_run(tmp_path, run, batches=2)
    left.mkdir()
    (left / ".tmpAbC123").write_bytes(b"half")
    (tmp_path / ".hlscore-progress-0-of-x.safetensors").write_bytes(b"other")
    (tmp_path / ".hlscore-progress-0-of-2.safetensors").write_bytes(b"other")
    assert stored_run(tmp_path, run, resume=True).rows == undisturbed("exact").rows
    assert not left.exists()
    (tmp_path / "kept").write_text("mine")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("writes", [0, 2])
def test_a_full_disk_leaves_what_was_stored(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = options("sketch"), []

    def refusing(tensors: Any, path: Path, **kwargs: Any) -> None:
        calls.append(path)
        if len(calls) > writes:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, **kwargs)

    real = progress.save_file
    monkeypatch.setattr(progress, "save_file", refusing)
    with pytest.raises(ArtifactError, match="No space left") as found:
        stored_run(tmp_path, run, resume=False)
    assert "--save-every 0" in (found.value.hint or "")
    if not writes:
        assert not list(tmp_path.iterdir())
        return
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["hlscore"])["progress"]["position"]
    assert stored == {"half": 0, "group": 0, "batch": 2}
    monkeypatch.undo()
    assert stored_run(tmp_path, run, resume=True).rows == undisturbed("sketch").rows


def test_a_process_goes_on_from_what_it_has_stored(tmp_path: Path) -> None:
    """Two processes, one of which was killed before it had stored anything."""

    class Pair(Processes):
        """Gathers what the other process would say."""

        def gather(self, item: Any) -> list[Any]:
            return [item, said[0]]

    said: list[Any] = [True]
    file, other = (progress_file(tmp_path, Pair(rank=rank, size=2)) for rank in (0, 1))
    file.save(PROGRESS, {"a": torch.ones(2)})
    start = RunState(position=RunPosition(), loss=0.0, batch_size=9)
    found, state = file.load(start, CPU)
    assert found == PROGRESS
    assert state["a"].tolist() == [1.0, 1.0]
    assert other.load(start, CPU) == (start, {})
    alone = progress_file(tmp_path)
    with pytest.raises(UsageError, match="another number of processes") as error:
        alone.load(start, CPU)  # there is progress, of two processes
    assert "--force" in (error.value.hint or "")
    # Where processes go in step, all must have stored the same place.
    said[0] = True
    storage = UnfinishedRun(folder=tmp_path, every_seconds=1, resume=True)
    in_step = ProgressFile(storage, _Behind(rank=0, size=2), together=True)
    with pytest.raises(UsageError, match="were stopped while they stored"):
        in_step.load(start, CPU)


class _Behind(Processes):
    """Gathers what another process would say that has stored nothing."""

    def gather(self, item: Any) -> list[Any]:
        start = RunState(position=RunPosition(), loss=0.0, batch_size=9)
        return [item, start if isinstance(item, RunState) else False]


def test_times_of_a_resumed_run_are_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    start = RunState(position=RunPosition(), loss=0.0, batch_size=1)
    for start_at, stored_at, expected in ((100.0, 130.0, 30.0), (1000.0, 1012.0, 42.0)):
        now[0] = start_at
        file = progress_file(tmp_path)
        if expected > 30.0:
            file.load(start, CPU)
        now[0] = stored_at
        file.save(start, {"sums": torch.zeros(1)})
        again = progress_file(tmp_path)
        again.load(start, CPU)
        assert again.earlier_seconds == expected


def test_lines_outside_a_terminal_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=40)
    shown = lines.LineProgress(console, every_seconds=60)
    shown.start("probing", 1000, "tokens")
    for _ in range(10):
        now[0] += 30
        shown.advance(100)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "probing: 200 of 1,000 tokens, 20 %, about 4 min left",
        "probing: 400 of 1,000 tokens, 40 %, about 3 min left",
        "probing: 600 of 1,000 tokens, 60 %, about 2 min left",
        "probing: 800 of 1,000 tokens, 80 %, about 60 s left",
    ]


def test_few_examples_take_fewer_batches_and_keep_their_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = settings(groups=8, batch_size=4, bootstrap=10)
    few = run_report("llama", completions(24), asked)
    monkeypatch.setattr(units, "LEAST_GROUPS", 8)
    many = run_report("llama", completions(24), asked)
    assert (few.probes.groups, many.probes.groups) == (8, 16)  # 3 examples of a batch of 4, or 1, 2
    found, expected = (
        {name: row.hls for name, row in by_module(report.rows).items()} for report in (few, many)
    )
    largest = max(abs(value or 0.0) for value in expected.values())
    assert found == pytest.approx(expected, abs=1e-4 * largest)
