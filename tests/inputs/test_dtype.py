"""float16 on a CPU: never chosen, and said aloud where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from console import hlscore
from families import FAMILIES
from tokens import byte_tokenizer

from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float16")
    FAMILIES["llama"].build(torch.float16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_auto_widens_it_exactly(halves: Path, tmp_path: Path, named: bool) -> None:
    """Whether or not the configuration names the dtype of the weights."""
    for file in halves.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float16"
    if not named:
        del config["dtype"]
        (tmp_path / "config.json").write_text(json.dumps(config))
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
