"""CPU threads: how many there may be, and work that is spread over them."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from console import hlscore
from families import FAMILIES
from problems import completions, run_report, settings

from hlscore import memory, threads
from hlscore.flow import weights_alone
from hlscore.gradients import run as run_module
from hlscore.threads import cpu_limit, thread_limit, torch_threads, workers

V2 = "0::/user/job\n"
V1 = "12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n"


def v1(group: str, quota: str) -> dict[str, str]:
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {}, 8),
        (V2, {"user/job/cpu.max": "max 100000"}, 8),
        (V2, {"user/job/cpu.max": "250000 100000"}, 2),
        (V2, {"user/job/cpu.max": "50000 100000"}, 1),
        (V2, {"user/job/cpu.max": "max 100000", "user/cpu.max": "300000 100000"}, 3),
        (V2, {"user/job/cpu.max": "600000 100000", "cpu.max": "150000 50000"}, 3),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        # A container that is told its path on the host sees its own group at the root.
        (V1, v1("cpu", "200000"), 2),
        (V1, v1("cpu,cpuacct/docker/1", "500000"), 5),
        (V1, v1("cpu", "-1"), 8),
        (V1, {"memory/cpu.max": "100000 100000"}, 8),
        (None, {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_cpus_are_limited_by_affinity_and_quotas(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str | None,
    files: dict[str, str],
    expected: int,
) -> None:
    own = tmp_path / "cgroup"
    if groups is not None:
        own.write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    monkeypatch.setattr("hlscore.control_groups._OWN", own)
    monkeypatch.setattr("hlscore.control_groups._MOUNT", tmp_path / "sys")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpu_limit() == expected


def test_torch_takes_no_more_threads_than_there_are_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cpu_limit", lambda: 3)
    with torch_threads(2):
        assert thread_limit() == 2
    with torch_threads(5):
        assert thread_limit() == 3
    assert torch.get_num_threads() == 1


def test_jobs_run_in_threads_of_their_own_with_one_thread_of_torch() -> None:
    seen: list[tuple[int, int]] = []
    meet = threading.Barrier(3, timeout=30)  # passed only by three jobs at a time

    def job() -> tuple[int, int]:
        meet.wait()
        return threading.get_ident(), torch.get_num_threads()

    with torch_threads(2):
        with workers(3, seen.append) as submit:
            for _ in range(6):
                submit(job)
        assert torch.get_num_threads() == 2
    assert len(seen) == 6
    assert {count for _, count in seen} == {1}
    assert len({thread for thread, _ in seen} | {threading.get_ident()}) == 4


def test_few_jobs_wait_at_a_time_and_without_threads_the_caller_runs_them() -> None:
    ended: list[int] = []
    with workers(2, ended.append) as submit:
        for number in range(20):
            submit(lambda number=number: number)
            assert number + 1 - len(ended) <= 2
    assert sorted(ended) == list(range(20))
    with workers(0, ended.append) as submit:
        submit(threading.get_ident)
    assert ended[-1] == threading.get_ident()


def test_error_of_a_job_reaches_the_caller() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with torch_threads(2):
        with pytest.raises(RuntimeError, match="broken"), workers(2, lambda _: None) as submit:
            submit(broken)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_scores_do_not_depend_on_the_number_of_threads(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(settings(estimator=estimator, bootstrap=10), weight_scores=True)
    counts: list[int] = []
    real = memory.worker_count

    def forced(limit: int) -> object:
        monkeypatch.setattr(memory, "thread_limit", lambda: limit)
        counts.append(real(1))
        return run_report(FAMILIES["qwen3_moe"].build(), completions(), run).rows

    assert forced(1) == forced(3)
    assert counts == [1, 3]


def test_threads_are_as_few_as_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "thread_limit", lambda: 8)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    assert [memory.worker_count(size) for size in (1, 300, 450, 5000)] == [8, 3, 2, 1]


def test_modules_are_reduced_and_weights_decomposed_with_one_thread_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []

    def counting(real: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            counts.append(torch.get_num_threads())
            return real(*arguments, **options)  # type: ignore[operator]

        return call

    monkeypatch.setattr(memory, "thread_limit", lambda: 2)
    monkeypatch.setattr("hlscore.flow.rank.thread_limit", lambda: 2)
    monkeypatch.setattr(run_module, "reduce_gradients", counting(run_module.reduce_gradients))
    monkeypatch.setattr(weights_alone, "measure_weight", counting(weights_alone.measure_weight))
    run = replace(settings(estimator="exact"), weight_scores=True)
    report = run_report(FAMILIES["llama"].build(), completions(), run)
    scored = [row for row in report.rows if row.status == "scored"]
    assert counts == [1] * (2 * len(scored))
    assert torch.get_num_threads() == 1


def test_command_lets_waiting_threads_sleep() -> None:
    with patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)
        assert hlscore("--version").code == 0
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        assert hlscore("--version").code == 0
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
