"""The seed adapter against PEFT's own files, and against the base model it must equal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from console import hlscore
from families import FAMILIES, token_batch
from plans import plan_for
from safetensors import safe_open
from safetensors.torch import save_file

from hlscore.artifacts.files import write_files
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.errors import ModelError
from hlscore.exporters.adapter_config import lora_config, ties_weights
from hlscore.exporters.base_weights import base_weights
from hlscore.exporters.exporter import Export
from hlscore.exporters.formats import seed_adapter
from hlscore.exporters.formats.seed_adapter import adapter_tensors
from hlscore.exporters.limits import PEFT_LIMITS, nearest
from hlscore.inputs.identity import sampled_bytes
from hlscore.inputs.tensor_files import NewTensor, file_tensors, stored_tensors, write_tensors
from hlscore.settings import ModelSettings

MODEL_FILE = "adapter_model.safetensors"


def write_seed(plan: Plan, folder: Path, **settings: Any) -> Path:
    write_files(folder, seed_adapter.EXPORTER.files(Export(plan=plan, **settings)))
    return folder


def tensor_sizes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def saved_plan(
    name: str, folder: Path, *locks: str, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[Plan, Path]:
    """A plan for a model of a family, and the folder that holds the model."""
    FAMILIES[name].build().to(dtype).save_pretrained(folder)
    return plan_for(FAMILIES[name].build(), locks, str(folder), **settings), folder


def equals_base_and_peft(plan: Plan, name: str, base: Path, folder: Path) -> None:
    """The seed computes what the base does, and its tensors are those that PEFT would save."""
    family = FAMILIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seed = write_seed(plan, folder / "seed")
    model = family.auto_class.from_pretrained(base, dtype=torch.float32).eval()
    batch = token_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        wrapped = peft.PeftModel.from_pretrained(model, seed, is_trainable=True).eval()
        torch.testing.assert_close(wrapped(**batch).logits, expected, rtol=0, atol=1e-6)
    own = peft.get_peft_model(family.build(), lora_config(plan))
    own.save_pretrained(
        folder / "own", save_embedding_layers="auto" if ties_weights(plan) else False
    )
    assert tensor_sizes(seed / MODEL_FILE) == tensor_sizes(folder / "own" / MODEL_FILE)
    trainable = [
        {key for key, value in one.named_parameters() if value.requires_grad}
        for one in (wrapped, own)
    ]
    assert trainable[0] == trainable[1]


@pytest.mark.parametrize(
    ("name", "embeddings"),
    [*((name, False) for name in FAMILIES), ("llama", True), ("olmo2", True)],
)
def test_seed_is_what_peft_would_save_and_equals_the_base(
    name: str, embeddings: bool, tmp_path: Path
) -> None:
    locks = ("*=rank:2", "*.1.*=rank:3", "*.0.*=full")
    made, base = saved_plan(name, tmp_path / "base", *locks, embeddings=embeddings, head=embeddings)
    plan, _ = nearest(made, PEFT_LIMITS)
    assert embeddings == any(item.form == "embedding" for item in plan.lora_modules)
    assert plan.full
    assert plan.lora_modules
    equals_base_and_peft(plan, name, base, tmp_path)


def test_a_tied_embedding_in_full_is_found_by_all_its_names(tmp_path: Path) -> None:
    plan, base = saved_plan("qwen3", tmp_path / "base", "*embed_tokens=full", embeddings=True)
    equals_base_and_peft(plan, "qwen3", base, tmp_path)


def test_copies_keep_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    plan, base = saved_plan("llama", tmp_path / "base", "*down_proj=full", dtype=torch.bfloat16)
    seed = write_seed(plan, tmp_path / "seed", allow_other_weights=True)
    found, whole = stored_tensors(seed), stored_tensors(base)
    for item in plan.full:
        copy, original = found[f"base_model.model.{item.parameter}"], whole[item.parameter]
        assert copy.dtype == "BF16"
        assert b"".join(copy.chunks()) == b"".join(original.chunks())


def test_equal_plans_give_equal_bytes_that_name_their_plan(tmp_path: Path) -> None:
    plan, base = saved_plan("llama", tmp_path / "base", "*down_proj=full")
    first, second = (write_seed(plan, tmp_path / name) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    with safe_open(first / MODEL_FILE, framework="pt") as file:
        assert file.metadata()["hlscore_structure"] == plan.model.fingerprint.structure
        drawn = [file.get_tensor(key) for key in file.keys() if "lora_A" in key]  # noqa: SIM118
    assert len({tensor.numpy().tobytes() for tensor in drawn}) == len(drawn)
    assert all(0 < float(tensor.abs().max()) <= tensor.shape[1] ** -0.5 for tensor in drawn)
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_other_models_are_refused_or_warned_of(tmp_path: Path) -> None:
    mistral, _ = saved_plan("mistral", tmp_path / "mistral")  # has a block more than Llama
    llama, olmo2 = (saved_plan(name, tmp_path / name)[1] for name in ("llama", "olmo2"))
    with pytest.raises(ModelError, match=r"model\.layers\.2"):
        write_seed(mistral, tmp_path / "seed", model=str(llama))
    plan = plan_for(FAMILIES["llama"].build(seed=1), [], str(llama))
    with pytest.raises(ModelError, match=r"is \[24, 48\], the plan says \[32, 48\]"):
        write_seed(plan, tmp_path / "seed", model=str(olmo2))
    with pytest.warns(UserWarning, match="not those that the plan was made from"):
        write_seed(plan, tmp_path / "seed")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_seed(plan, tmp_path / "seed2", allow_other_weights=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_samples_of_a_file_are_those_of_the_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "a": (torch.randn(7, 13, dtype=torch.float64) * 1e3).to(dtype),
        "b": torch.tensor([float("inf"), -0.0, 1e-30, 5.0], dtype=torch.float64).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for name, stored in stored_tensors(tmp_path).items():
        expected = np.frombuffer(sampled_bytes(tensors[name]), dtype=np.int16)
        assert stored.sample().tolist() == expected.tolist()


def test_the_files_of_a_model_are_those_that_transformers_reads(tmp_path: Path) -> None:
    def save(name: str, **numbers: float) -> None:
        save_file({key: torch.tensor([value]) for key, value in numbers.items()}, tmp_path / name)

    def read() -> dict[str, str]:
        return {key: found.path.name for key, found in stored_tensors(tmp_path).items()}

    save("one.safetensors", a=1, b=1)
    save("two.safetensors", c=2)
    assert read() == {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    save("two.safetensors", b=2, c=2)
    with pytest.raises(ModelError, match=r"'b' twice, in one\.safetensors and two\.safetensors"):
        stored_tensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert read() == {"a": "one.safetensors", "b": "two.safetensors"}
    save("model.safetensors", b=3)
    assert read() == {"b": "model.safetensors"}
    assert file_tensors(tmp_path / "one.safetensors").keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "does not hold a JSON object"),
        ('{"weight_map": 5}', "no weight_map"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"weight_map": {"a": 5}}', "names 5, which is not a file of its folder"),
        ('{"weight_map": {"a": "../other/one.safetensors"}}', "not a file of its folder"),
        ('{"weight_map": {"a": "/one.safetensors"}}', "not a file of its folder"),
        ('{"weight_map": {"a": "\\u0000"}}', "not a file of its folder"),
        ('{"weight_map": {"a": ".."}}', "not a file of its folder"),
        ('{"weight_map": {"a": "missing.safetensors"}}', "lacks missing.safetensors"),
        ('{"weight_map": {"b": "one.safetensors"}}', "has no tensor 'b'"),
    ],
)
def test_a_wrong_index_is_refused(index: str, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=message):
        stored_tensors(tmp_path)


def test_a_tensor_can_be_written_twice_and_must_have_its_size(tmp_path: Path) -> None:
    tensor = NewTensor(dtype="F32", shape=(2,), size=8, chunks=lambda: iter([b"1234", b"5678"]))
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {"x": tensor}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for part in (b"1234", b"123456789"):
        short = NewTensor(dtype="F32", shape=(2,), size=8, chunks=lambda part=part: iter([part]))
        with pytest.raises(ModelError, match=f"'x' has {len(part)} bytes, not 8"):
            write_tensors(tmp_path / "c", {"x": short}, {})


def test_adapters_are_drawn_when_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(FAMILIES["llama"].build(), [], embeddings=True)
    monkeypatch.setattr(np.random, "PCG64", lambda *_: pytest.fail("drawn too early"))
    tensors = adapter_tensors(plan)
    monkeypatch.undo()
    whole = {name: b"".join(tensor.chunks()) for name, tensor in tensors.items()}
    assert all(len(whole[name]) == tensor.size for name, tensor in tensors.items())
    monkeypatch.setattr(seed_adapter, "_CHUNK_NUMBERS", 7)
    assert whole == {name: b"".join(tensor.chunks()) for name, tensor in tensors.items()}


def test_weights_under_other_names_are_read_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, base = saved_plan("mixtral", tmp_path / "base", "*.0.*q_proj=full")
    monkeypatch.setattr("hlscore.inputs.model.load_weights", lambda *_: pytest.fail("loaded"))
    found, weights_hash = base_weights(plan, ModelSettings(model=str(base)))
    for item in plan.modules:
        whole = FAMILIES["mixtral"].build().get_parameter(item.parameter)
        expected = whole.detach().numpy().tobytes()
        assert b"".join(found[item.parameter].chunks()) == expected
    assert weights_hash() == plan.model.fingerprint.weights


def test_the_folder_is_looked_at_before_the_model(tmp_path: Path) -> None:
    plan = plan_for(FAMILIES["llama"].build(), [], str(tmp_path / "no-model"))
    write_plan(plan, tmp_path / "plan.json")
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / MODEL_FILE).touch()
    command = ("export", tmp_path / "plan.json", "--to", "seed-adapter", "--out")
    assert "already exists" in hlscore(*command, tmp_path / "seed").message
    assert "no model directory" in hlscore(*command, tmp_path / "new").message
    assert not (tmp_path / "new").exists()
