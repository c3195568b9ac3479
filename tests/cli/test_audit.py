"""`hlscore audit` against updates whose ranks and sizes are known because they were planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from console import hlscore as command
from console import save_model
from families import FAMILIES
from plans import plan_for
from safetensors.torch import load_file, save_file
from training_runs import every_mode, train

import hlscore
from hlscore.artifacts.plan_file import write_plan
from hlscore.artifacts.report import read_report

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def planted(folder: Path) -> dict[str, torch.Tensor]:
    """A base, and a checkpoint with an update of rank 8 in one weight and of full rank in one."""
    save_model(folder / "base", model=FAMILIES["llama"].build())
    save_model(folder / "run", model=FAMILIES["llama"].build())
    path = folder / "run" / "model.safetensors"
    tensors, generator = load_file(path), torch.Generator().manual_seed(0)

    def orthonormal(rows: int, columns: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q

    rows, columns = tensors[f"{Q}.weight"].shape
    left, right = orthonormal(rows, 8), orthonormal(columns, 8)
    updates = {Q: 0.1 * left @ right.T, DOWN: 0.001 * orthonormal(80, 48).T}
    for name, update in updates.items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + update
    save_file(tensors, path, metadata={"format": "pt"})
    return updates


def test_a_planted_rank_and_an_untouched_weight_are_found(tmp_path: Path) -> None:
    updates = planted(tmp_path)
    out = tmp_path / "audit.parquet"
    options = ["--model", tmp_path / "base", "-r", "4", "-o", out]
    result = command("audit", tmp_path / "run", *options, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    modules = {item["module"]: item for item in found["modules"]}
    weights = dict(FAMILIES["llama"].build().named_parameters())
    for name, rank in ((Q, 8), (DOWN, 48)):
        item = modules[name]
        expected = float(updates[name].norm() / weights[f"{name}.weight"].detach().norm())
        assert item["relative_update"] == pytest.approx(expected, rel=1e-4)
        assert item["rank_for_99"] == rank
        assert item["stable_rank"] == pytest.approx(rank, rel=1e-3)
        assert item["effective_rank"] == pytest.approx(rank, rel=0.02)
        assert item["beyond_rank"] == pytest.approx(1 - 4 / rank, rel=1e-3)
        assert (item["lora_rank"], item["changed"]) == (None, True)
    assert set(found["unmoved"]) == modules.keys() - {Q, DOWN}
    assert found["hardly"] == [DOWN]
    assert found["model"] == str(tmp_path / "base")
    report = read_report(out)
    assert {row.module for row in report.candidates if row.status == "scored"} == {Q, DOWN}
    plan = command("plan", out, "--ranks", "2,4,8", "--budget", "0.3p", "-o", tmp_path / "p.json")
    assert plan.code == 0, plan.err
    again = command("audit", tmp_path / "run", *options)
    assert (again.code, "already exists" in again.message) == (2, True)


def test_a_hybrid_is_held_against_its_plan(tmp_path: Path) -> None:
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    model = FAMILIES["llama"].build()
    plan = plan_for(model, every_mode(model), str(tmp_path / "base"))
    write_plan(plan, tmp_path / "plan.json")
    wrapped = hlscore.apply(model, plan)
    train(wrapped, steps=3)
    wrapped.save_pretrained(tmp_path / "run")
    options = ["--model", tmp_path / "base", "--plan", tmp_path / "plan.json"]
    result = command("audit", tmp_path / "run", *options, "-o", tmp_path / "a.parquet", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    modules = {item["module"]: item for item in found["modules"]}
    for item in plan.modules:
        assert modules[item.module]["changed"] == (item.mode != "frozen")
        if item.mode == "lora":
            assert modules[item.module]["lora_rank"] == item.rank
            assert modules[item.module]["rank_for_99"] <= (item.rank or 0)
    against = found["plan"]
    assert not against["frozen_moved"]
    assert not against["trained_unmoved"]
    assert not against["other_rank"]
    assert -1 <= against["kendall"]["full"] <= 1
    result = command("audit", tmp_path / "run", *options, "-o", tmp_path / "a.parquet", "--force")
    assert result.code == 0, result.err
    assert "Kendall's tau between its scores and the energies of the updates: " in result.out
    assert "hlscore plan" in result.out
    other = plan_for(
        FAMILIES["llama"].build(), ["*q_proj=rank:3", "*.gate_proj=frozen", "*.o_proj=full"]
    )
    write_plan(other, tmp_path / "plan.json")
    result = command("audit", tmp_path / "run", *options, "-o", tmp_path / "b.parquet", "--json")
    against = json.loads(result.out)["plan"]
    moved = {name for name, item in modules.items() if item["changed"]}
    gates = {name for name in modules if name.endswith("gate_proj")}
    assert set(against["frozen_moved"]) == gates & moved
    planned = {item.module for item in other.modules if item.mode != "frozen"}
    assert set(against["trained_unmoved"]) == planned - moved
    assert {name for name in against["other_rank"] if name.endswith("q_proj")}
