"""Folders with more or less than a model: an adapter beside the weights or alone, GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from console import QUICK, hlscore, save_model
from families import FAMILIES
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import hlscore as package
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError
from hlscore.inputs.hub import find_adapter
from hlscore.settings import ModelSettings


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("clean"))


def put_adapter(folder: Path, base: str) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(FAMILIES["llama"].build(), config)
    wrapped.peft_config["default"].base_model_name_or_path = base
    torch.nn.init.ones_(wrapped.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
                        .lora_B["default"].weight)  # fmt: skip
    wrapped.save_pretrained(folder)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A model that was saved into the folder of the adapter that it was merged from."""
    folder = save_model(tmp_path / "merged")
    put_adapter(folder, "some/base")
    return folder


@pytest.mark.parametrize("options", [("--dry-run",), ("--data", "none")])
def test_an_adapter_beside_the_weights_is_refused(options: tuple[str, ...], merged: Path) -> None:
    outcome = hlscore("rank", merged, *options)
    assert outcome.code == 3
    assert "holds an adapter (adapter_config.json) beside the weights" in outcome.message
    assert "--ignore-adapter" in outcome.message


@pytest.mark.parametrize("options", [QUICK, ("--data", "none")])
def test_ignoring_the_adapter_ranks_the_weights_as_they_are(
    options: tuple[str, ...], merged: Path, clean: Path, tmp_path: Path
) -> None:
    done = hlscore("rank", merged, *options, "--ignore-adapter", "-o", tmp_path / "a")
    assert hlscore("rank", clean, *options, "-o", tmp_path / "b").code == 0
    assert sum("--ignore-adapter" in note for note in done.notes) == 1
    found, wanted = (read_plan(tmp_path / name / "plan.json") for name in "ab")
    assert found.model.fingerprint == wanted.model.fingerprint
    assert found.modules == wanted.modules
    assert [note for note in found.notes if "--ignore-adapter" in note]
    plan = tmp_path / "a" / "plan.json"
    checked = hlscore("check", plan, "--model", merged, "--weights")
    assert (checked.code, checked.err) == (0, "")
    seed = hlscore("export", plan, "--to", "seed-adapter", "-o", tmp_path / "seed")
    assert (seed.code, seed.err) == (0, "")


@pytest.mark.parametrize(("config", "options"), [(False, ("--data", "none")), (True, ())])
def test_an_adapter_in_place_of_a_model_names_its_base(
    config: bool, options: tuple[str, ...], clean: Path, tmp_path: Path
) -> None:
    put_adapter(tmp_path, "some/base")
    if config:  # trainers save it beside the adapter, and their arguments
        (tmp_path / "config.json").write_text((clean / "config.json").read_text())
        (tmp_path / "training_args.bin").write_bytes(b"pickle")
    outcome = hlscore("rank", tmp_path, *options, "--ignore-adapter")
    assert outcome.code == 3
    assert "is an adapter, not a model" in outcome.message
    assert "'some/base'" in outcome.message


def test_arguments_of_a_trainer_are_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_adapter(tmp_path, "some/base")
    files = ["adapter_config.json", "adapter_model.safetensors", "training_args.bin"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    assert find_adapter(ModelSettings(model="org/adapter")) == tmp_path


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"base_model_name_or_path": "\\u001b[2J"}'])
def test_an_adapter_that_names_no_base_is_refused_too(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    assert "Give its base model, or the model" in hlscore("modules", tmp_path).message


def test_a_model_with_an_adapter_attached_is_refused_in_python(clean: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(clean)
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(clean), LoraConfig(target_modules=["q_proj"])
    )
    assert isinstance(wrapped, PeftModel)
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ModelError, match="has an adapter of PEFT attached"):
            package.rank(model, tokenizer, samples=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["file", "folder", "folder with config"])
def test_gguf_says_how_to_convert(place: str, clean: Path, tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K.gguf").write_bytes(b"GGUF")
    if place == "folder with config":
        (tmp_path / "config.json").write_text((clean / "config.json").read_text())
    outcome = hlscore("rank", tmp_path / "model-Q4_K.gguf" if place == "file" else tmp_path)
    assert outcome.code == 3
    assert "holds GGUF weights (model-Q4_K.gguf)" in outcome.message
    assert f"from_pretrained('{tmp_path}', gguf_file='model-Q4_K.gguf')" in outcome.message
