"""The seed adapter against PEFT's own files, and against the base model it must equal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, token_batch
from plans import plan_for
from safetensors import safe_open
from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.tensors import stored_tensors
from hlscore.errors import ArtifactError, ModelError
from hlscore.exporters.formats import ExportSettings
from hlscore.exporters.limits import nearest
from hlscore.exporters.peft import PEFT_LIMITS, lora_config
from hlscore.exporters.seed_adapter import seed_files
from hlscore.inputs.fingerprint import SAMPLES_PER_WEIGHT, sampled_weights

MODEL_FILE = "adapter_model.safetensors"


def write_seed(plan: Plan, folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    for name, write in seed_files(plan, ExportSettings(**settings)).items():
        write(folder / name)
    return folder


def tensor_sizes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def saved(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_seed_is_what_peft_would_save_and_equals_the_base(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = saved(family.build(), tmp_path / "base")
    locks = ["*=rank:2", "*.1.*=rank:3", "*.0.*=full"]
    plan, _ = nearest(plan_for(family.build(), locks, str(base)), PEFT_LIMITS)
    assert plan.full
    assert plan.lora_modules
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seed = write_seed(plan, tmp_path / "seed")
    model = family.auto_class.from_pretrained(base, dtype=torch.float32).eval()
    batch = token_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        wrapped = peft.PeftModel.from_pretrained(model, seed, is_trainable=True).eval()
        torch.testing.assert_close(wrapped(**batch).logits, expected, rtol=0, atol=1e-6)
    own = peft.get_peft_model(family.build(), lora_config(plan))
    own.save_pretrained(tmp_path / "own")
    assert tensor_sizes(seed / MODEL_FILE) == tensor_sizes(tmp_path / "own" / MODEL_FILE)
    trainable = [
        {key for key, value in one.named_parameters() if value.requires_grad}
        for one in (wrapped, own)
    ]
    assert trainable[0] == trainable[1]


def test_copies_keep_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    base = saved(FAMILIES["llama"].build(), tmp_path / "base", torch.bfloat16)
    plan = plan_for(FAMILIES["llama"].build(), ["*down_proj=full"], str(base))
    seed = write_seed(plan, tmp_path / "seed", allow_other_weights=True)
    found, whole = stored_tensors(seed), stored_tensors(base)
    for item in plan.full:
        copy, original = found[f"base_model.model.{item.parameter}"], whole[item.parameter]
        assert copy.dtype == "BF16"
        assert b"".join(copy.chunks()) == b"".join(original.chunks())


def test_equal_plans_give_equal_bytes_that_name_their_plan(tmp_path: Path) -> None:
    base = saved(FAMILIES["llama"].build(), tmp_path / "base")
    plan = plan_for(FAMILIES["llama"].build(), ["*down_proj=full"], str(base))
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


def test_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    base = saved(FAMILIES["mistral"].build(), tmp_path / "base")  # a block more than llama
    plan = plan_for(FAMILIES["mistral"].build(), [], str(base))
    other = saved(FAMILIES["llama"].build(), tmp_path / "other")
    with pytest.raises(ModelError, match=r"model\.layers\.2"):
        write_seed(plan, tmp_path / "seed", model=str(other))
    smaller = saved(FAMILIES["olmo2"].build(), tmp_path / "smaller")
    plan = plan_for(FAMILIES["llama"].build(), [], str(base))
    with pytest.raises(ModelError, match=r"is \[24, 48\], the plan says \[32, 48\]"):
        write_seed(plan, tmp_path / "seed2", model=str(smaller))


def test_other_weights_are_warned_of(tmp_path: Path) -> None:
    base = saved(FAMILIES["llama"].build(seed=1), tmp_path / "base")
    plan = plan_for(FAMILIES["llama"].build(seed=0), [], str(base))
    with pytest.warns(UserWarning, match="not those that the plan was made from"):
        write_seed(plan, tmp_path / "seed")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_seed(plan, tmp_path / "seed2", allow_other_weights=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_samples_of_a_file_are_those_of_the_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        "a": (torch.randn(7, 13, dtype=torch.float64) * 1e3).to(dtype),
        "b": torch.tensor([float("inf"), -0.0, 1e-30, 5.0], dtype=torch.float64).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for name, stored in stored_tensors(tmp_path).items():
        expected = sampled_weights(tensors[name]).view(torch.int16).numpy()
        assert stored.sample(SAMPLES_PER_WEIGHT).tolist() == expected.tolist()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ArtifactError, match="corrupt or cut short"):
        stored_tensors(tmp_path)
