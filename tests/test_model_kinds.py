"""Models that cannot be probed end in one clear error, if possible before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from console import hlscore, save_model, texts, write_rows
from families import FAMILIES
from transformers import LlamaForSequenceClassification, LlamaModel

from hlscore.errors import ModelError
from hlscore.inputs.sharding import check_blocks_share_nothing

QUICK = ("--samples", "4", "--bootstrap", "0", "--rank", "4")


def checkpoint(folder: Path, kind: type[Any], *, tied: bool = False) -> Path:
    config = FAMILIES["llama"].build().config
    config.tie_word_embeddings = tied
    return save_model(folder, model=kind(config))


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LlamaForSequenceClassification, "is a classifier (LlamaForSequenceClassification"),
        (LlamaModel, "is a model without an output head (LlamaModel"),
    ],
)
def test_checkpoints_without_a_language_model_head_are_refused(
    tmp_path: Path, kind: type[Any], said: str, more: tuple[str, ...]
) -> None:
    model = checkpoint(tmp_path / "model", kind)
    rows = write_rows(tmp_path / "rows.jsonl", texts(4))
    found = hlscore("rank", model, "--data", rows, *QUICK, "-o", tmp_path / "out", *more)
    assert found.code == 3
    assert said in found.message
    assert "--data none" in found.message
    # The weights alone can be scored.
    alone = hlscore("rank", model, "--data", "none", "--rank", "4", "-o", tmp_path / "alone")
    assert alone.code == 0, alone.err


def test_tied_embeddings_serve_as_the_head(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", LlamaModel, tied=True)
    rows = write_rows(tmp_path / "rows.jsonl", texts(4))
    assert hlscore("rank", model, "--data", rows, *QUICK, "-o", tmp_path / "out").code == 0


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
    assert "LlamaForCausalLM fails in probe group 1 of half 1: use `model.train()`" in found.message


def test_blocks_that_share_a_parameter_are_not_sharded() -> None:
    model = FAMILIES["llama"].build()
    check_blocks_share_nothing(model, "some/model")
    layers = model.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"share mlp\.down_proj\.weight"):
        check_blocks_share_nothing(model, "some/model")
