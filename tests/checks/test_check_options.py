"""What `hlscore check` is asked to hold a plan against: models, trainers, noise, age, baselines."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import pytest
from broken_plans import Document, findings, git, line_of, made, write
from console import QUICK, hlscore, save_model
from families import FAMILIES
from plans import plan_for
from scipy.stats import kendalltau
from transformers import PreTrainedModel

from hlscore.artifacts.plan_file import write_plan
from hlscore.checks.rule import RULES

FULL = 0  # place of a module in full in the plan of `made`


def codes(path: Path, *options: object) -> list[str]:
    return [item["code"] for item in findings(path, *options)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ranked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Document:
    """A plan that `rank` wrote for a small Llama."""
    folder = tmp_path_factory.mktemp("ranked")
    found = hlscore("rank", model, "--out", folder / "out", "--budget", "0.3", *QUICK)
    assert found.code == 0, found.err
    plan: Document = json.loads((folder / "out" / "plan.json").read_text())
    return plan


def test_the_model_of_a_plan_fits_it(ranked: Document, model: Path, tmp_path: Path) -> None:
    path = write(ranked, tmp_path / "plan.json")
    assert codes(path, "--model", model) == []
    assert codes(path, "--model", model, "--weights") == []
    config = tmp_path / "config-only"
    config.mkdir()
    shutil.copy(model / "config.json", config)
    assert codes(path, "--model", config) == []


def test_what_does_not_fit_the_model_is_found(
    ranked: Document, model: Path, tmp_path: Path
) -> None:
    plan = deepcopy(ranked)
    name = plan["modules"][3]["module"]
    plan["modules"][3] |= {"module": f"{name}x", "parameter": f"{name}x.weight"}
    plan["modules"][4]["out_features"] += 2
    found = findings(write(plan, tmp_path / "plan.json"), "--model", model)
    by_code = {item["code"]: item for item in found}
    assert f"'{name}x'" in by_code["HLS301"]["message"]
    assert by_code["HLS301"]["line"] == line_of(plan, ("modules", 3, "module"))
    assert plan["modules"][4]["module"] in by_code["HLS302"]["message"]
    assert f"'{name}'" in by_code["HLS303"]["message"]
    for part, wrong in (("structure", ["HLS304"]), ("weights", [])):
        plan = deepcopy(ranked)
        plan["model"]["fingerprint"][part] = "sha256:" + "0" * 64
        path = write(plan, tmp_path / "plan.json")
        assert codes(path, "--model", model) == wrong
    assert codes(path, "--model", model, "--weights") == ["HLS305"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_for_every_family_passes(family: str, tmp_path: Path) -> None:
    built: PreTrainedModel = FAMILIES[family].build()
    write_plan(plan_for(built, ()), tmp_path / "plan.json")
    # All modules get LoRA, whatever their scores: those of rank 4 may span a small matrix.
    assert set(codes(tmp_path / "plan.json")) <= {"HLS110", "HLS505"}


def test_traps_of_trainers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for family, lock, trainer, expected in (
        ("qwen3_moe", "*.experts.gate_up_proj=full", "peft", {"HLS404"}),
        ("qwen3_moe", "*q_proj=rank:2", "llama-factory", {"HLS401", "HLS406"}),
        ("qwen3_moe", "*=frozen", "peft", {"HLS407"}),
        ("mamba", "*=lora", "peft", {"HLS405"}),
        ("gpt2", "*wte=full", "peft", {"HLS402"}),
    ):
        model = FAMILIES[family].build()
        write_plan(plan_for(model, (lock,), embeddings="wte" in lock), path)
        assert expected <= set(codes(path, "--for", trainer)), lock
        if "HLS406" in expected:
            assert "HLS406" not in codes(path, "--for", "peft")


def test_an_unstable_choice_fails_on_its_line(tmp_path: Path) -> None:
    plan = made()
    path = write(plan, tmp_path / "plan.json")
    chosen = [item["selection_probability"] for item in plan["modules"] if item["mode"] == "full"]
    between = sum(0.1 < item["selection_probability"] < 0.9 for item in plan["modules"])
    assert between
    assert codes(path, "--min-selection-probability", min(chosen)) == []
    assert codes(path, "--max-borderline", between) == []
    assert codes(path, "--max-borderline", between - 1) == ["HLS602"]
    assert codes(path, "--max-borderline", f"{100 * (between + 0.5) / 12:.1f}%") == []
    for place, value in ((FULL, 0.25), (FULL + 1, None)):
        plan["modules"][place]["selection_probability"] = value
    found = findings(write(plan, path), "--min-selection-probability", 0.26)
    lines = [line_of(plan, ("modules", FULL + n, "selection_probability")) for n in (0, 1)]
    assert [item["line"] for item in found if item["code"] == "HLS601"] == lines
    for item in plan["modules"]:
        item["selection_probability"] = None
    assert "HLS603" in codes(write(plan, path), "--min-selection-probability", 0.26)


def test_drift_of_libraries_counts_from_the_part_that_is_asked(tmp_path: Path) -> None:
    plan = made()
    plan["provenance"]["hlscore_version"] = version("hlscore")
    major, minor, patch = (int(part) for part in version("rich").split("."))
    for scored, failing in (
        (f"{major}.{minor}.{patch}", ()),
        (f"{major}.{minor}.{patch + 1}", ("none",)),
        (f"{major}.{minor + 1}.0", ("none", "patch")),
        (f"{major + 1}.0.0", ("none", "patch", "minor")),
    ):
        plan["provenance"]["versions"] = {"rich": scored}
        path = write(plan, tmp_path / "plan.json")
        for drift in ("none", "patch", "minor"):
            assert codes(path, "--max-drift", drift) == ["HLS703"] * (drift in failing)
    plan["provenance"]["versions"] = {"python": platform.python_version()}
    assert codes(write(plan, tmp_path / "plan.json"), "--max-drift", "none") == []
    plan["provenance"]["versions"] = {"no-such-library": "1.0"}
    assert codes(write(plan, tmp_path / "plan.json"), "--max-drift", "minor") == ["HLS703"]


def test_age_is_that_of_the_last_commit(tmp_path: Path) -> None:
    path = write(made(), tmp_path / "plan.json")
    assert codes(path, "--max-age", "1d") == []
    old = time.time() - 20 * 86_400
    os.utime(path, (old, old))
    assert codes(path, "--max-age", "19d") == ["HLS701"]
    assert codes(path, "--max-age", "3w") == []
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q")
    path = write(made(), folder / "plan.json")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "plan", days=30)
    assert codes(path, "--max-age", "29d") == ["HLS701"]
    assert codes(path, "--max-age", "31d") == []
    (folder / "other").write_text("x")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "other", days=2)
    assert codes(path, "--max-age", "29d") == ["HLS701"]
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{folder}", "shallow")
    assert codes(tmp_path / "shallow" / "plan.json", "--max-age", "29d") == ["HLS702"]
    write(made(budget="0.5"), path)
    assert codes(path, "--max-age", "1d") == []


def test_the_distance_from_a_baseline_is_what_an_oracle_counts(tmp_path: Path) -> None:
    old, new = made(), made(budget="0.5", score="grad_norm")
    scores = [item["score"] for item in old["modules"]]
    for item, score in zip(new["modules"], scores[3:] + scores[:3], strict=True):
        item["score"] = score
    new["score"] = old["score"]
    modes = [{m["module"]: (m["mode"], m["rank"]) for m in side["modules"]} for side in (old, new)]
    changed = sum(modes[0][name] != modes[1][name] for name in modes[0])
    full = [{name for name, (mode, _) in side.items() if mode == "full"} for side in modes]
    overlap = len(full[0] & full[1]) / len(full[0] | full[1])
    by_name = [{m["module"]: m["score"] for m in side["modules"]} for side in (old, new)]
    tau = kendalltau([by_name[0][n] for n in by_name[0]], [by_name[1][n] for n in by_name[0]])[0]
    base, path = write(old, tmp_path / "old.json"), write(new, tmp_path / "new.json")
    options = ("--baseline", base, "--ignore", "HLS205", "--ignore", "HLS505")
    plain = json.loads(hlscore("check", path, *options, "--json").out)["files"][0]
    found = plain["comparison"]
    assert (found["modules"], found["changed"]) == (12, changed)
    assert found["overlap"] == pytest.approx(overlap)
    assert found["tau"] == pytest.approx(tau)
    assert found["tau_low"] <= tau <= found["tau_high"]
    assert changed > 0
    above, below = (f"{100 * (changed + share) / 12}%" for share in (0.1, -0.1))
    for option, passing, failing, code in (
        ("--max-changed", changed, changed - 1, "HLS801"),
        ("--max-changed", above, below, "HLS801"),
        ("--min-overlap", overlap - 1e-6, overlap + 1e-6, "HLS802"),
        ("--min-tau", tau - 1e-6, tau + 1e-6, "HLS803"),
    ):  # fmt: skip
        assert codes(path, *options, option, passing) == []
        assert codes(path, *options, option, failing) == [code]


def test_baselines_that_cannot_be_compared_are_told(tmp_path: Path) -> None:
    base = write(made(score="grad_norm"), tmp_path / "other-score.json")
    path = write(made(), tmp_path / "plan.json")
    assert codes(path, "--baseline", base) == []
    assert codes(path, "--baseline", base, "--min-tau", "0") == ["HLS805"]
    other = made()
    other["model"]["fingerprint"]["structure"] = "sha256:9"
    base = write(other, tmp_path / "other.json")
    assert codes(path, "--baseline", base) == ["HLS804"]


def test_every_rule_with_an_option_is_tested_here() -> None:
    asked = {code for code, rule in RULES.items() if rule.when}
    text = Path(__file__).read_text()
    assert {code for code in asked if code not in text} <= {"HLS403"}


CONFIG = """
plans = ["plans/plan.json"]
for = ["peft"]
min-selection-probability = 0.0
max-borderline = "100%"
baseline = "plans/old.json"
max-changed = 12
min-overlap = 0.0
ignore = ["HLS207"]
strict = true
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plans").mkdir()
    plan = made(budget="0.5")
    plan["modules"][-1]["alpha"] = 99
    write(plan, tmp_path / "plans" / "plan.json")
    write(made(), tmp_path / "plans" / "old.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_repository_keeps_its_rules(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hlscore("check").code == 2
    (repository / "hlscore-check.toml").write_text(CONFIG)
    found = hlscore("check", "--json")
    assert found.code == 0, found
    result = json.loads(found.out)["files"][0]
    assert result["file"] == "plans/plan.json"
    assert {"HLS401", "HLS601", "HLS602", "HLS801", "HLS802"} <= set(result["rules"])
    assert "HLS207" not in result["rules"]
    assert hlscore("check", "--max-changed", "0").code == 1
    (repository / "hlscore-check.toml").unlink()
    table = "[project]\nname = 'x'\n[tool.hlscore.check]\n" + CONFIG
    (repository / "pyproject.toml").write_text(table)
    assert hlscore("check").code == 0
    monkeypatch.chdir(repository / "plans")
    assert hlscore("check").code == 2
    (repository / "rules.toml").write_text(CONFIG)
    assert hlscore("check", "--config", "../rules.toml").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plans = 5", "plans"),
        ("nonsense = 1", "There are: plans, model,"),
        ("min_tau = 0.5", "Did you mean 'min-tau'?"),
        ("min-tau = 7", "min-tau"),
        ("min-tau = nan", "min-tau"),
        ("max-age = 'old'", "max-age"),
        ("strict = 'yes'", "strict"),
        ("x = [", "hlscore-check.toml"),
        ("for = ['nothing']\nplans = ['plans/plan.json']", "nothing"),
    ],
)
def test_a_wrong_configuration_is_one_line(text: str, message: str, repository: Path) -> None:
    (repository / "hlscore-check.toml").write_text(text)
    found = hlscore("check", "plans/plan.json")
    assert found.code == 2
    assert message in found.message
