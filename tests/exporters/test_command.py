"""`hlscore export` as a person or a script meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reports
from console import Outcome, hlscore

from hlscore.artifacts.plan_file import read_plan, write_plan
from hlscore.exporters.exporter import Export, exporter_names, find_exporter
from hlscore.exporters.limits import nearest
from hlscore.planning.make_plan import make_plan
from hlscore.settings import PlanSettings

NAMES = [name for name in exporter_names() if name != "seed-adapter"]


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    write_plan(make_plan(reports.report(20), PlanSettings(rank=4, budget="0.25")), path)
    return path


def written(*command: object) -> Outcome:
    """A command that must succeed."""
    done = hlscore("export", *command)
    assert done.code == 0, done.err
    return done


def test_refusals_the_nearest_plan_and_what_is_there_already(
    plan_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "verl.yaml"
    command = (plan_file, "--to", "verl", "--out", out)
    refused = hlscore("export", *command)
    assert (refused.code, out.exists()) == (2, False)
    assert "cannot run this plan" in refused.err
    assert "--nearest" in refused.err
    freeze = hlscore("export", plan_file, "--to", "freeze", "--out", out)
    assert freeze.message.startswith("error: A freeze-only trainer cannot run this plan.")
    shown = written(*command, "--nearest").out
    assert all(part in shown for part in (str(out), "changed: ", "Experimental: "))
    before = out.read_bytes()
    again = hlscore("export", *command, "--nearest")
    assert (again.code, "already exists" in again.err) == (2, True)
    written(*command, "--nearest", "--force")
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_are_used_or_said_to_be_lost(
    name: str, plan_file: Path, tmp_path: Path
) -> None:
    lost = f"The format {name} has no learning rates: set them in your trainer."
    command = (plan_file, "--to", name, "-o", tmp_path / "out", "--nearest", "--force", "--json")
    assert lost not in json.loads(written(*command).out)["notes"]
    for option in ("--full-lr", "--lora-lr"):
        content = json.loads(written(*command, option, "3.25e-05").out)
        assert (lost in content["notes"]) == (name in ("peft", "freeze", "csv"))
    text = " ".join([*(Path(path).read_text() for path in content["files"]), *content["notes"]])
    assert (lost in text) != ("3.25e-05" in text)


@pytest.mark.parametrize("name", ["axolotl", "prime-rl", "unsloth", "trl"])
def test_a_single_file_gets_the_suffix_that_its_trainer_reads(
    name: str, plan_file: Path, tmp_path: Path
) -> None:
    exporter = find_exporter(name)
    shown = written(plan_file, "--to", name, "-o", tmp_path / "mine", "--nearest").out
    if exporter.folder:
        assert (tmp_path / "mine").is_dir()
        return
    plan, _ = nearest(read_plan(plan_file), exporter.limits)
    (default,) = exporter.files(Export(plan=plan))
    path = tmp_path / f"mine{Path(default).suffix}"
    assert path.is_file()
    assert not (tmp_path / "mine").exists()
    assert exporter.usage.replace("{out}", str(path)) in shown.replace("\n", " ")
    (tmp_path / "folder").mkdir()
    written(plan_file, "--to", name, "-o", tmp_path / "folder", "--nearest")
    assert (tmp_path / "folder" / default).is_file()


def test_list_json_and_a_model_by_its_whole_path(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = written("--list").out
    assert all(name in shown for name in exporter_names())
    listed = json.loads(written("--list", "--json").out)
    assert [item["name"] for item in listed] == list(exporter_names())
    (freeze,) = (item for item in listed if item["name"] == "freeze")
    assert (freeze["full"], freeze["lora"], freeze["ranks"]) == (True, False, False)
    found = json.loads(written(plan_file, "--to", "csv", "--json").out)
    assert found["files"] == [str(tmp_path / "plan.csv")]
    assert len((tmp_path / "plan.csv").read_text().splitlines()) == 21
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    written(plan_file, "--to", "peft", "--model", "./model")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["PLAN"], 2, "needs a plan and a format"),
        (["--to", "peft"], 2, "needs a plan and a format"),
        (["PLAN", "--to", "megatron"], 2, "There is no exporter 'megatron'"),
        (["PLAN", "--to", "llama_factory"], 2, "Did you mean 'llama-factory'?"),
        (["missing.json", "--to", "peft"], 3, "There is no file"),
        (["PLAN", "--to", "csv", "--out", "PLAN", "--force"], 2, "is the plan itself"),
        (["PLAN", "--to", "seed-adapter"], 3, "org/model"),
        (["PLAN", "--to", "axolotl", "--full-lr", "-1"], 2, "--full-lr"),
        (["PLAN", "--to", "axolotl", "--lora-lr", "nan"], 2, "--lora-lr"),
    ],
)
def test_bad_input_gets_one_error(
    arguments: list[str], code: int, message: str, plan_file: Path, tmp_path: Path
) -> None:
    found = hlscore("export", *(plan_file if item == "PLAN" else item for item in arguments))
    assert (found.code, message in found.err) == (code, True), found
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
