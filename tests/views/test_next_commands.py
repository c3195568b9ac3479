"""Commands that are printed as the next ones: pasted, they do what the run before them did."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from console import Outcome, hlscore, save_model, texts, write_rows
from report_content import planned
from reports import report
from shown import commands

from hlscore.artifacts.plan_file import read_plan
from hlscore.settings import (
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    MemorySettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
    arguments,
)
from hlscore.views.result import print_result
from hlscore.views.terminal import Terminal

TRAINING = ("--optimizer", "sgd", "--master", "bf16", "--base", "8", "--train-batch", "2")
LOCK = "*.down_proj=lora"


def next_commands(outcome: Outcome, *words: str) -> list[list[str]]:
    """Printed commands that hold all of some words."""
    assert outcome.code == 0, outcome.err
    lines = [shlex.split(line) for line in commands(outcome.out)]
    return [found for _, *found in lines if set(words) <= set(found)]


def command(outcome: Outcome, *words: str) -> list[str]:
    (found,) = next_commands(outcome, *words)
    return found


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("ranked")
    save_model(folder / "my model")
    write_rows(folder / "rows.jsonl", [{"body": row["text"]} for row in texts(12)])
    found = hlscore(
        "rank", folder / "my model", "--data", folder / "rows.jsonl", "--column", "text=body",
        "--max-length", "40", "--dtype", "bfloat16", "--device", "cpu", "--trust-remote-code",
        "--rank", "2", "--alpha", "6", "--budget", "0.3", "--lock", LOCK, *TRAINING,
        "--bootstrap", "0", "-o", folder / "out",
    )  # fmt: skip
    assert found.code == 0, found.err
    return folder, found


def test_pasted_commands_of_rank_keep_its_options(
    ranked: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = ranked
    monkeypatch.chdir(tmp_path)
    first = read_plan(folder / "out" / "plan.json").settings
    assert (first.alpha, first.locks, first.memory.base_bits) == (6, (LOCK,), 8)

    words = command(found, "plan", "plan-20.json")
    assert hlscore(*words).code == 0
    made = read_plan(tmp_path / words[-1]).settings
    assert asdict(made) == asdict(first) | {"budget": "0.2"}
    assert hlscore(*command(found, "export")).code == 0

    trial = command(found, "validate")
    for option in ("--trust-remote-code", "bfloat16", "cpu", "40", "text=body"):
        assert option in trial
    outcome = hlscore(*trial, "--dry-run", "--steps", "2", "--batch-size", "2")
    assert outcome.code == 0, outcome.err


def test_pasted_commands_of_show_keep_the_options_of_the_run(
    ranked: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = ranked
    monkeypatch.chdir(tmp_path)
    plan_file, scores = folder / "out" / "plan.json", folder / "out" / "scores.parquet"
    first = read_plan(plan_file).settings
    shown = hlscore("show", scores)
    assert hlscore(*command(shown, "show")).code == 0
    assert hlscore(*command(shown, "plan")).code == 0
    assert read_plan(tmp_path / "plan.json") == read_plan(plan_file)

    name = "model.layers.1.mlp.down_proj"
    for file in (scores, plan_file):
        words = command(hlscore("show", file, "--module", name), "plan")
        assert hlscore(*words, "--force").code == 0
        made = read_plan(tmp_path / "plan-locked.json")
        assert {item.mode for item in made.modules if item.module == name} == {"full"}
        others = [item.mode for item in made.modules
                  if item.module.endswith("down_proj") and item.module != name]  # fmt: skip
        assert set(others) == {"lora"}
        assert asdict(made.settings) == asdict(first) | {"locks": made.settings.locks}


def test_plans_made_from_a_plan_keep_its_own_options(
    ranked: tuple[Path, Outcome], tmp_path: Path
) -> None:
    scores = Path(shutil.copy(ranked[0] / "out" / "scores.parquet", tmp_path))
    own = ("--budget", "0.4p", "--ranks", "1,2,4", "--value-power", "0.5", "--rank", "4",
           "--score", "tail", "--lock", "*.q_proj=rank:1", "--lock", "*.0.*.k_proj=full",
           "--alpha", "12", "--train-length", "64")  # fmt: skip
    assert hlscore("plan", scores, *own).code == 0
    first = read_plan(tmp_path / "plan.json")
    name = first.modules[0].module
    words = command(hlscore("show", tmp_path / "plan.json", "--module", name), "plan")
    again = words[: words.index("--lock", len(words) - 4)]
    assert hlscore(*again, "-o", tmp_path / "again.json").code == 0
    assert read_plan(tmp_path / "again.json") == first


@pytest.mark.parametrize("baseline", [None, "lora-matched", "random", "all-lora", "all-full"])
def test_diff_plans_scores_as_the_plan_beside_them(
    ranked: tuple[Path, Outcome], tmp_path: Path, baseline: str | None
) -> None:
    scores, plan_file = ranked[0] / "out" / "scores.parquet", tmp_path / "plan.json"
    own = ("--ranks", "1,2,4,8", "--value-power", "0.5", "--alpha", "8", "--budget", "0.2p",
           "--lock", "*.o_proj=full", "--lock", "*.v_proj=frozen")  # fmt: skip
    chosen = own if baseline is None else ("--baseline", baseline, "--budget", "0.2")
    assert hlscore("plan", scores, *chosen, "-o", plan_file).code == 0
    for files in ((scores, plan_file), (plan_file, scores)):
        found = hlscore("diff", *files, "--json")
        assert found.code == 0, found.err
        assert json.loads(found.out)["moves"] == []


def test_estimate_hands_its_options_to_rank(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    found = hlscore(
        "estimate", tmp_path / "model", "--exclude", "*.0.*", "--head", "--rank", "4", "--budget",
        "0.2p", "--trust-remote-code", *TRAINING,
    )  # fmt: skip
    words = command(found, "rank")
    rows = write_rows(tmp_path / "rows.jsonl", texts(4))
    outcome = hlscore(*words, "--data", rows, "--bootstrap", "0", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    plan = read_plan(tmp_path / "out" / "plan.json")
    settings: Any = plan.provenance.settings
    assert settings["candidates"]["exclude"] == ["*.0.*"]
    assert settings["candidates"]["head"]
    assert settings["model"]["trust_remote_code"]
    made = plan.settings
    assert (made.rank, made.budget) == (4, "0.2p")
    assert made.memory == MemorySettings(optimizer="sgd", master="bf16", base_bits=8, train_batch=2)


def test_validate_gets_only_the_options_that_it_has() -> None:
    model = ModelSettings(model="m", text_only=True, ignore_adapter=True, dtype="float32")
    settings = asdict(RankSettings(model=model, data=DataSettings(samples=7, max_length=40)))
    found = report(3)
    ranked = replace(found, run=replace(found.run, settings=settings))
    console = Terminal(file=io.StringIO(), record=True)
    paths = {name: Path(name) for name in ("scores.parquet", "plan.json")}
    print_result(ranked, planned(ranked, budget="1"), paths, top=1, console=console)
    expected = "hlscore validate org/model --plan plan.json --dtype float32 --max-length 40"
    assert expected in commands(console.export_text())


@pytest.mark.parametrize(("kind", "values", "expected"), [
    (ModelSettings,
     {"revision": "v 2", "dtype": "float32", "device_map": "auto", "allow_pickle": True,
      "max_memory": {"0": "20GiB", "cpu": "64GiB"}},
     "--revision 'v 2' --dtype float32 --device-map auto --max-memory 0=20GiB "
     "--max-memory cpu=64GiB --allow-pickle"),
    (DataSettings, {"data": "d", "config": "c"}, "--data d --data-config c"),
    (CaptureSettings, {"checkpointing": False, "groups": 4}, "--no-checkpointing --groups 4"),
    (CandidateSettings, {"include": ["a*", "b"]}, "--include 'a*' --include b"),
    (PlanSettings, {"ranks": (4, 8), "rank": 4, "locks": ("*=full", "x=lora")},
     "--rank 4 --ranks 4,8 --lock '*=full' --lock x=lora"),
])  # fmt: skip
def test_options_are_those_that_differ_from_the_defaults(
    kind: type, values: dict[str, Any], expected: str
) -> None:
    assert shlex.join(arguments(kind, values)) == expected
