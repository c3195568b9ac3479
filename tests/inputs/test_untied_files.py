"""Checkpoints whose configuration ties two weights that differ in the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import QUICK, hlscore, save_model
from families import FAMILIES, _settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hlscore.artifacts.plan_file import read_plan
from hlscore.inputs.identity import count_params
from hlscore.inputs.model import load_model, load_shape
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.settings import ModelSettings

FILE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def tied_llama(folder: Path) -> Path:
    config = LlamaConfig(**_settings(tie_word_embeddings=True))
    return save_model(folder, model=AutoModelForCausalLM.from_config(config).eval())


def add_head(folder: Path, *, equal: bool, embedding: str = EMBEDDING) -> Path:
    tensors = load_file(folder / FILE)
    assert HEAD not in tensors
    tensors[HEAD] = tensors[embedding].clone()
    if not equal:
        tensors[HEAD][-1, -1] += 0.5
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder


def ways(folder: Path) -> list[PreTrainedModel]:
    settings = ModelSettings(model=str(folder), device="cpu")
    return [
        load_model(settings).model, load_shape(settings)[0], StoredWeights(settings).shape,
        AutoModelForCausalLM.from_pretrained(folder),
    ]  # fmt: skip


@pytest.mark.parametrize("equal", [True, False])
def test_every_way_counts_what_loading_gives(equal: bool, tmp_path: Path) -> None:
    folder = add_head(tied_llama(tmp_path), equal=equal)
    counts = {count_params(model) for model in ways(folder)}
    head = torch.Size(load_file(folder / FILE)[HEAD].shape).numel()
    blocks = sum(value.numel() for name, value in load_file(folder / FILE).items() if name != HEAD)
    assert counts == {blocks if equal else blocks + head}
    shares = {model.get_input_embeddings().weight is model.get_output_embeddings().weight
              for model in ways(folder)}  # fmt: skip
    assert shares == {equal}


@pytest.mark.parametrize("options", [QUICK, ("--data", "none")])
def test_a_head_of_its_own_is_ranked_and_the_note_says_why(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    folder = add_head(tied_llama(tmp_path), equal=False)
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


def test_nothing_is_said_where_both_are_equal(tmp_path: Path) -> None:
    folder = add_head(tied_llama(tmp_path), equal=True)
    assert not load_model(ModelSettings(model=str(folder), device="cpu")).identity.notes


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
