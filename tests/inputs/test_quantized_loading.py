"""Models quantized while loading, quantized checkpoints, and layers that only look quantized."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import change_config, save_model
from families import FAMILIES, token_batch
from loading import input_gradient, widen
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from hlscore.errors import ModelError, UsageError
from hlscore.inputs.identity import count_params, identify, structure_hash
from hlscore.inputs.model import load_model, load_shape, planned_weight_bytes
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.weights import dense_weight, is_packed_linear
from hlscore.settings import ModelSettings

NAMES = ("llama", "gpt2", "mixtral")
Originals = dict[str, tuple[Path, PreTrainedModel]]
every_name = pytest.mark.parametrize("name", NAMES)
packed = pytest.mark.usefixtures("packers")
either = pytest.mark.parametrize("load_in", ["4bit", "8bit"])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    found = {}
    for name in NAMES:
        model = widen(name)
        found[name] = (save_model(tmp_path_factory.mktemp(name), model=model), model)
    return found


@pytest.fixture
def packers() -> None:
    pytest.importorskip("bitsandbytes")


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return load_model(ModelSettings(model=str(folder), device="cpu", **options)).model


def packed_bytes(model: PreTrainedModel) -> int:
    """What the weights really take, constants included."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            total += state.absmax.numel() + 4 * state.state2.absmax.numel()
        if (scales := getattr(parameter, "SCB", None)) is not None:
            total += 4 * scales.numel()
    return total


@packed
@pytest.mark.parametrize(("load_in", "error"), [("4bit", 0.12), ("8bit", 0.01)])
@every_name
def test_a_quantized_model_is_the_original_but_for_rounding(
    originals: Originals, caplog: pytest.LogCaptureFixture, name: str, load_in: Any, error: float
) -> None:
    """Candidates, counts, planned size and weights; the libraries say nothing."""
    folder, original = originals[name]
    settings = ModelSettings(model=str(folder), device="cpu", load_in=load_in)
    loaded = load_model(settings)
    expected = identify(original, "original", None)
    found, before = find_modules(loaded.model), find_modules(original)
    assert [replace(item, quantized=False) for item in found] == list(before)
    assert loaded.identity.n_params == expected.n_params
    assert loaded.identity.fingerprint.structure == expected.fingerprint.structure
    shape, _ = load_shape(settings)
    planned = planned_weight_bytes(shape, settings)
    assert planned == pytest.approx(packed_bytes(loaded.model), rel=0.02)
    assert planned < planned_weight_bytes(shape, replace(settings, load_in=None))
    chosen = candidates_of(found)
    first = [dense_weight(loaded.model, item) for item in chosen]
    with torch.no_grad():
        loaded.model(**token_batch())
    for item, weight in zip(chosen, first, strict=True):
        # All but experts and routers.
        assert item.quantized is (item.matrices == 1 and item.kind != "gate")
        true, again = original.get_parameter(item.parameter), dense_weight(loaded.model, item)
        assert weight is not None
        assert again is not None
        assert weight.shape == true.shape
        assert torch.linalg.norm(weight - true) < error * torch.linalg.norm(true)
        assert torch.equal(again, weight), "a forward pass without gradients changed the weight"
    assert not [r for r in caplog.records if r.name.startswith(("bitsandbytes", "accelerate"))]


@packed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@either
@every_name
def test_gradients_flow_through_frozen_packed_weights(
    originals: Originals, name: str, load_in: Any, dtype: Any
) -> None:
    folder, original = originals[name]
    model = load(folder, load_in=load_in, dtype=dtype)
    found = input_gradient(model, FAMILIES[name].block_list(model))
    true = input_gradient(original)
    likeness = torch.nn.functional.cosine_similarity(found.flatten(), true.flatten(), dim=0)
    assert likeness > (0.85 if load_in == "4bit" else 0.99)
    assert all(parameter.grad is None for parameter in model.parameters())


@packed
@either
def test_quantized_checkpoint_loads_again(
    originals: Originals, tmp_path: Path, load_in: Any
) -> None:
    folder, original = originals["llama"]
    model = load(folder, load_in=load_in)
    save_model(tmp_path, model=model)
    settings = ModelSettings(model=str(tmp_path), device="cpu")
    again = load_model(settings)
    assert again.identity.fingerprint == identify(model, "first", None).fingerprint
    assert any(item.quantized for item in find_modules(again.model))
    size = packed_bytes(model)
    batch = token_batch()
    with torch.no_grad():
        assert torch.equal(again.model(**batch).logits, model(**batch).logits)
    shape, _ = load_shape(settings)
    assert find_modules(shape) == find_modules(original)
    assert planned_weight_bytes(shape, settings) == pytest.approx(size, rel=0.02)
    with pytest.raises(UsageError, match="is quantized already \\(bitsandbytes\\)"):
        load(tmp_path, load_in=load_in)


@packed
def test_computations_take_the_dtype_of_the_model(originals: Originals, tmp_path: Path) -> None:
    folder, _ = originals["gpt2"]
    save_model(tmp_path, model=load(folder, load_in="4bit"))
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    change_config(
        tmp_path, quantization_config=quantization | {"bnb_4bit_compute_dtype": "float16"}
    )
    with pytest.raises(UsageError, match="with float32 beside it"):
        load(tmp_path, dtype="bfloat16")
    model = load(tmp_path)
    with torch.no_grad():
        model(**token_batch())
    packed = [module for module in model.modules() if is_packed_linear(module)]
    assert packed
    for module in packed:
        assert module.compute_dtype == torch.float32
        assert isinstance(module.bias, nn.Parameter)
        assert module.bias.dtype == torch.float32


@packed
def test_narrow_4bit_layers_are_refused_on_a_cpu(tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES["llama"].build())
    with pytest.raises(ModelError, match="has 48 inputs") as caught:
        load(tmp_path, load_in="4bit")
    assert "--load-in 8bit" in caught.value.hint
    assert load(tmp_path, load_in="8bit")


@packed
def test_weights_rearranged_for_inference_are_refused(originals: Originals) -> None:
    model = load(originals["llama"][0], load_in="4bit")
    weight: Any = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        identify(model, "mine", None)


@pytest.mark.parametrize(
    ("package", "asked", "extra"),
    [
        ("bitsandbytes", {"load_in": "4bit"}, "quant"),
        ("accelerate", {"load_in": "4bit"}, "quant"),
        ("accelerate", {"device_map": "auto"}, "devices"),
    ],
)
def test_missing_package_is_named(
    originals: Originals, monkeypatch: pytest.MonkeyPatch, package: str, asked: Any, extra: str
) -> None:
    if (package, extra) == ("accelerate", "quant"):
        pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(sys.modules, package, None)
    option = next(iter(asked)).replace("_", "-")
    with pytest.raises(ModelError, match=f"--{option} needs the package {package}") as caught:
        load_model(ModelSettings(model=str(originals["llama"][0]), **asked))
    assert caught.value.hint == f"pip install 'hlscore[{extra}]'"


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "shrink"}, "'shrink', which transformers does not know"),
        ({"bits": 4}, "'unnamed', which transformers does not know"),
    ],
    ids=lambda value: value.get("quant_method", "") if isinstance(value, dict) else "",
)
def test_other_methods_name_what_is_missing(
    originals: Originals, tmp_path: Path, quantization: dict[str, object], says: str
) -> None:
    pytest.importorskip("accelerate")
    save_model(tmp_path, model=originals["llama"][1])
    change_config(tmp_path, quantization_config=quantization)
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert says in caught.value.message
    assert caught.value.hint
    shape, _ = load_shape(ModelSettings(model=str(tmp_path)))
    assert find_modules(shape) == find_modules(originals["llama"][1])


class Packed(nn.Module):
    """A quantized layer as libraries write them: packed integers and scales."""

    def __init__(self, old: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features = old.in_features, old.out_features
        integers = torch.zeros(old.in_features // 8, old.out_features, dtype=torch.int32)
        if kind == "buffers":
            self.register_buffer("qweight", integers)
            self.register_buffer("scales", torch.ones(1, old.out_features))
        elif kind == "parameter":
            self.W_q = nn.Parameter(integers, requires_grad=False)
        elif kind == "float8":
            self.weight = nn.Parameter(old.weight.to(torch.float8_e4m3fn), requires_grad=False)
            self.weight_scale_inv = nn.Parameter(torch.ones(1, 1))
        elif kind == "bfloat16":  # bitsandbytes with bnb_4bit_quant_storage
            halves = torch.zeros(old.weight.numel() // 4, 1, dtype=torch.bfloat16)
            self.weight = nn.Parameter(halves, requires_grad=False)


@pytest.mark.parametrize("kind", ["buffers", "parameter", "float8", "bfloat16"])
def test_packed_layers_of_any_library_are_candidates(kind: str) -> None:
    model = FAMILIES["llama"].build()
    before, count = find_modules(model), count_params(model)
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.layers.set_submodule(name, Packed(module, kind))
    found = find_modules(model)
    assert [replace(item, quantized=False) for item in found] == list(before)
    assert all(item.quantized for item in candidates_of(found))
    assert count_params(model) == count
    assert not any(dense_weight(model, item) is not None for item in candidates_of(found))
    assert structure_hash(candidates_of(found)) == structure_hash(candidates_of(before))


def test_packed_experts_of_unknown_layout_are_skipped() -> None:
    model = FAMILIES["mixtral"].build()
    experts = model.get_submodule("model.layers.0.mlp.experts")
    packed = experts.gate_up_proj.to(torch.float8_e4m3fn)  # type: ignore[operator]
    experts.gate_up_proj = nn.Parameter(packed, requires_grad=False)
    found = {item.module: item for item in find_modules(model)}
    assert "quantized" in found["model.layers.0.mlp.experts.gate_up_proj"].reason
    assert not found["model.layers.1.mlp.experts.gate_up_proj"].reason


@packed
def test_models_from_a_trainer_are_accepted(originals: Originals) -> None:
    """A model that the caller quantized, with bfloat16 storage as FSDP needs it."""
    folder, original = originals["llama"]
    stored = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16
    )
    model = FAMILIES["llama"].auto_class.from_pretrained(
        folder, quantization_config=stored, device_map={"": "cpu"}
    )
    assert identify(model, "mine", None).n_params == identify(original, "o", None).n_params
    for item in candidates_of(find_modules(model)):
        weight, true = dense_weight(model, item), original.get_parameter(item.parameter)
        assert weight is not None
        assert torch.linalg.norm(weight - true) < 0.12 * torch.linalg.norm(true)
