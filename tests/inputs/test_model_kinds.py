"""Models that cannot be probed end in one clear error, if possible before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from console import hlscore, save_model, texts, write_rows
from families import FAMILIES

from hlscore.errors import ModelError
from hlscore.inputs.sharding import check_blocks_share_nothing

QUICK = ("--samples", "4", "--bootstrap", "0", "--rank", "4")


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
