"""Models that are loaded otherwise than they are stored, or not: ties, float16, shared blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from console import QUICK, change_config, hlscore, save_model, texts, write_rows
from families import FAMILIES, make_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError
from hlscore.inputs.identity import count_params
from hlscore.inputs.model import check_blocks_share_nothing, load_model, load_shape
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.settings import ModelSettings

FILE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def tied_llama(folder: Path, *, equal: bool) -> Path:
    """A checkpoint that ties its head to its embedding, with a head of its own in the files."""
    config = make_config(LlamaConfig, tie_word_embeddings=True)()
    save_model(folder, model=AutoModelForCausalLM.from_config(config).eval())
    tensors = load_file(folder / FILE)
    assert HEAD not in tensors
    tensors[HEAD] = tensors[EMBEDDING].clone()
    if not equal:
        tensors[HEAD][-1, -1] += 0.5
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("equal", [True, False])
def test_every_way_counts_what_loading_gives(equal: bool, tmp_path: Path) -> None:
    folder = tied_llama(tmp_path, equal=equal)
    settings = ModelSettings(model=str(folder), device="cpu")
    loaded = load_model(settings)
    models = (
        loaded.model, load_shape(settings)[0], StoredWeights(settings).shape,
        AutoModelForCausalLM.from_pretrained(folder),
    )  # fmt: skip
    tensors = load_file(folder / FILE)
    counted = sum(value.numel() for name, value in tensors.items() if name != HEAD or not equal)
    for model in models:
        assert count_params(model) == counted
        shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert shared is equal
    assert bool(loaded.identity.notes) is not equal


@pytest.mark.parametrize("options", [QUICK, ("--data", "none")])
def test_a_head_of_its_own_is_ranked_and_the_note_says_why(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tied_llama(tmp_path, equal=False)
    listed = json.loads(hlscore("modules", folder, "--head", "--json").out)
    assert any(item["module"] == "lm_head" and not item["reason"] for item in listed["modules"])
    done = hlscore("rank", folder, *options, "--head", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [note for note in done.notes if EMBEDDING in note and HEAD in note]
    plan = read_plan(tmp_path / "out" / "plan.json")
    assert plan.model.params == listed["params"]
    assert any(item.module == "lm_head" for item in plan.modules)
    checked = hlscore("check", tmp_path / "out" / "plan.json", "--model", folder, "--weights")
    assert (checked.code, checked.err) == (0, "")


def test_tensors_with_other_names_in_the_files_are_found(tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    config: Any = family.config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    folder = save_model(tmp_path, model=family.auto_class.from_config(config).eval())
    tensors = load_file(folder / FILE)
    tensors["language_model.lm_head.weight"] = (
        1 + tensors["language_model.model.embed_tokens.weight"]
    )
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    settings = ModelSettings(model=str(folder), device="cpu")
    loaded, (shape, _) = load_model(settings), load_shape(settings)
    assert not loaded.model.all_tied_weights_keys
    assert count_params(loaded.model) == count_params(shape)
    assert any("lm_head.weight" in note for note in loaded.identity.notes)


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
