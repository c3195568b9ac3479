"""`hlscore export` as a person or a script meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import reports

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.cli.main import _run
from hlscore.exporters.exporter import Export, exporter_names, find_exporter
from hlscore.exporters.limits import nearest
from hlscore.planning.make_plan import make_plan
from hlscore.settings import PlanSettings

Call = Callable[..., tuple[int, str, str]]

NAMES = [name for name in exporter_names() if name != "seed-adapter"]


def made_plan(count: int = 20, **settings: object) -> Plan:
    base = reports.report(count)
    return make_plan(base, PlanSettings(**{"rank": 4, **settings}))  # type: ignore[arg-type]


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    write_plan(made_plan(budget="0.25"), path)
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hlscore", *map(str, arguments)])
        capsys.readouterr()
        code = _run()
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return start


def test_refusals_the_nearest_plan_and_what_is_there_already(
    call: Call, plan_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "verl.yaml"
    command = ("export", plan_file, "--to", "verl", "--out", out)
    code, _, error = call(*command)
    assert (code, out.exists()) == (2, False)
    assert "cannot run this plan" in error
    assert "--nearest" in error
    code, shown, error = call(*command, "--nearest")
    assert code == 0, error
    assert str(out) in shown
    assert "changed: " in shown
    assert "Experimental: " in shown
    written = out.read_bytes()
    code, _, error = call(*command, "--nearest")
    assert (code, "already exists" in error) == (2, True)
    assert call(*command, "--nearest", "--force")[0] == 0
    assert out.read_bytes() == written


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_are_used_or_said_to_be_lost(
    name: str, call: Call, plan_file: Path, tmp_path: Path
) -> None:
    lost = f"The format {name} has no learning rates: set them in your trainer."
    arguments = ("export", plan_file, "--to", name, "-o", tmp_path / "out", "--nearest", "--force")
    assert lost not in json.loads(call(*arguments, "--json")[1])["notes"]
    for option in ("--full-lr", "--lora-lr"):
        code, out, error = call(*arguments, "--json", option, "3.25e-05")
        assert code == 0, error
        said = json.loads(out)["notes"]
        assert (lost in said) == (name in ("peft", "freeze", "csv"))
    written = "".join(Path(path).read_text() for path in json.loads(out)["files"])
    assert (lost in said) != ("3.25e-05" in written or "3.25e-05" in " ".join(said))


@pytest.mark.parametrize("name", ["axolotl", "prime-rl", "unsloth", "trl"])
def test_a_single_file_gets_the_suffix_that_its_trainer_reads(
    name: str, call: Call, plan_file: Path, tmp_path: Path
) -> None:
    exporter = find_exporter(name)
    code, shown, error = call(
        "export", plan_file, "--to", name, "-o", tmp_path / "mine", "--nearest"
    )
    assert code == 0, error
    if exporter.folder:
        assert (tmp_path / "mine").is_dir()
        return
    (default,) = exporter.files(Export(plan=nearest(made_plan(budget="0.25"), exporter.limits)[0]))
    written = tmp_path / f"mine{Path(default).suffix}"
    assert written.is_file()
    assert not (tmp_path / "mine").exists()
    if "{out}" in exporter.usage:
        assert exporter.usage.replace("{out}", str(written)) in shown.replace("\n", " ")
    (tmp_path / "folder").mkdir()
    assert call("export", plan_file, "--to", name, "-o", tmp_path / "folder", "--nearest")[0] == 0
    assert (tmp_path / "folder" / default).is_file()


def test_list_and_json(call: Call, plan_file: Path, tmp_path: Path) -> None:
    code, out, _ = call("export", "--list")
    assert code == 0
    assert all(name in out for name in exporter_names())
    listed = json.loads(call("export", "--list", "--json")[1])
    assert [item["name"] for item in listed] == list(exporter_names())
    (freeze,) = (item for item in listed if item["name"] == "freeze")
    assert (freeze["full"], freeze["lora"], freeze["ranks"]) == (True, False, False)
    found = json.loads(call("export", plan_file, "--to", "csv", "--json")[1])
    assert found["files"] == [str(tmp_path / "plan.csv")]
    assert len((tmp_path / "plan.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["PLAN"], 2, "needs a plan and a format"),
        (["--to", "peft"], 2, "needs a plan and a format"),
        (["PLAN", "--to", "megatron"], 2, "There is no exporter 'megatron'"),
        (["PLAN", "--to", "llama_factory"], 2, "Did you mean llama-factory?"),
        (["missing.json", "--to", "peft"], 3, "There is no file"),
        (["PLAN", "--to", "csv", "--out", "PLAN", "--force"], 2, "is the plan itself"),
        (["PLAN", "--to", "seed-adapter"], 3, "org/model"),
        (["PLAN", "--to", "axolotl", "--full-lr", "-1"], 2, "--full-lr"),
        (["PLAN", "--to", "axolotl", "--lora-lr", "nan"], 2, "--lora-lr"),
    ],
)
def test_bad_input_gets_one_error(
    arguments: list[str], code: int, message: str, call: Call, plan_file: Path,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [str(plan_file) if item == "PLAN" else item for item in arguments]
    found = call("export", *given)
    assert (found[0], message in found[2]) == (code, True), found
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_folder_is_written_whole_and_read_from_anywhere(
    call: Call, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call("export", plan_file, "--to", "peft", "--model", "./model")[0] == 0
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "model")
