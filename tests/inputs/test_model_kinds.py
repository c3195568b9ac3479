"""float16 on a CPU is never chosen, and models that cannot be probed end in one clear error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from console import QUICK, change_config, hlscore, save_model, texts, write_rows
from families import FAMILIES

from hlscore.errors import ModelError
from hlscore.inputs.model import check_blocks_share_nothing, load_model
from hlscore.settings import ModelSettings


def test_an_error_of_the_model_is_no_bug_of_hlscore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("use `model.train()`")

    model = save_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", texts(4))
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", refuse)
    found = hlscore("rank", model, "--data", rows, *QUICK, "-o", tmp_path / "out")
    assert found.code == 3
    assert "LlamaForCausalLM fails: use `model.train()`" in found.message
    assert "bug in hlscore" not in found.err


def test_blocks_that_share_a_parameter_are_not_sharded() -> None:
    model = FAMILIES["llama"].build()
    check_blocks_share_nothing(model, "some/model")
    layers = model.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"share mlp\.down_proj\.weight"):
        check_blocks_share_nothing(model, "some/model")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = FAMILIES["llama"].build(torch.float16)
    return save_model(tmp_path_factory.mktemp("float16"), model=model)


@pytest.mark.parametrize("named", [True, False])
def test_auto_widens_it_exactly(halves: Path, tmp_path: Path, named: bool) -> None:
    """Whether or not the configuration names the dtype of the weights."""
    shutil.copytree(halves, tmp_path, dirs_exist_ok=True)
    assert '"dtype": "float16"' in (tmp_path / "config.json").read_text()
    if not named:
        change_config(tmp_path, dtype=None)
    widened = load_model(ModelSettings(model=str(tmp_path), device="cpu")).model
    asked = load_model(ModelSettings(model=str(halves), device="cpu", dtype="float16")).model
    assert {value.dtype for value in widened.parameters()} == {torch.float32}
    assert {value.dtype for value in asked.parameters()} == {torch.float16}
    for one, two in zip(widened.parameters(), asked.parameters(), strict=True):
        assert torch.equal(one, two.float())


@pytest.mark.parametrize(("dtype", "warns"), [("auto", False), ("float16", True)])
def test_it_is_warned_of(halves: Path, dtype: str, warns: bool) -> None:
    options = ("--device", "cpu", "--dtype", dtype, "--samples", "8", "--max-length", "64")
    outcome = hlscore("rank", halves, *options, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert ("warning: float16 is very slow" in outcome.err) is warns
