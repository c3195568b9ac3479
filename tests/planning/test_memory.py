"""Predicted bytes of weights, gradients and optimizer state against real training steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reports
import torch
from console import save_model
from families import FAMILIES, token_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import Adafactor, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from hlscore.inputs.identity import dimensions, identify, parameter_sizes
from hlscore.inputs.model import load_shape
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.planning.memory import (
    Choice,
    MemoryUse,
    activation_bytes,
    base_bytes,
    extra_use,
    full_training,
    memory_use,
)
from hlscore.records import ModuleRow
from hlscore.settings import CandidateSettings, MemorySettings, ModelSettings

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
RANK = 4
MODEL = reports.report(7).model
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "sgd", "sgd-momentum")
NAMES = ("llama", "gpt2", "phi3", "mixtral", "gpt_neox")
EVERY = CandidateSettings(embeddings=True, head=True)
# On a CPU a LayerNorm in bfloat16 takes no float32 from an embedding, autocast or not.
WITHOUT_EMBEDDING = {"gpt2", "gpt_neox", "gpt_oss"}


def choices_for(model: PreTrainedModel, which: CandidateSettings = EVERY) -> list[Choice]:
    """A third of the modules in full, a third with LoRA; embedding and head in full.

    Experts go as one: PEFT trains all matrices of an `experts` module in full, or none.
    """
    found = find_modules(model, which)
    tied = {item.tied_to for item in found}
    chosen = []
    for place, item in enumerate(candidates_of(found)):
        mode = ("full", "lora", "frozen")[place % 3]
        if item.form == "experts":
            mode = ("full", "lora")[(item.layer or 0) % 2]
        elif item.layer is None or item.module in tied:
            mode = "full"
        chosen.append(Choice(row=item, mode=mode, rank=RANK if mode == "lora" else 0))  # type: ignore[arg-type]
    return chosen


def wrap(model: PreTrainedModel, choices: Sequence[Choice], master: torch.dtype) -> nn.Module:
    """The model under PEFT, with what is trained in the master precision."""
    peft = pytest.importorskip("peft")
    lora = [item.row for item in choices if item.mode == "lora"]
    linear = ("linear", "conv1d", "embedding")
    config = peft.LoraConfig(
        r=RANK,
        target_modules=[row.module for row in lora if row.form in linear] or "dummy-target-modules",
        target_parameters=[row.parameter for row in lora if row.form not in linear] or None,
        modules_to_save=sorted({item.row.holder for item in choices if item.mode == "full"}),
        ensure_weight_tying=True,
        fan_in_fan_out=any(row.form == "conv1d" for row in lora),
    )
    wrapped: nn.Module = peft.get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(master)
    return wrapped


def optimizer_for(name: str, model: nn.Module) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adafactor":
        return Adafactor(trained, lr=1e-3, relative_step=False, scale_parameter=False)
    if name in ("adamw8bit", "lion8bit", "lion"):
        optim = pytest.importorskip("bitsandbytes").optim
        if name.endswith("8bit"):
            manager = optim.GlobalOptimManager.get_instance()
            for module in model.modules():  # as the trainer of transformers does
                if isinstance(module, nn.Embedding):
                    manager.register_module_override(module, "weight", {"optim_bits": 32})
        kind = {"adamw8bit": optim.AdamW8bit, "lion8bit": optim.Lion8bit, "lion": optim.Lion}
        return kind[name](trained, lr=1e-3)
    if name == "adamw":
        return torch.optim.AdamW(trained, lr=1e-3)
    return torch.optim.SGD(trained, lr=1e-3, momentum=0.9 if name == "sgd-momentum" else 0)


def step(model: nn.Module, name: str) -> Any:
    """One training step; gives the optimizer."""
    batch = token_batch()
    optimizer = optimizer_for(name, model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    loss.backward()
    for parameter in model.parameters():  # experts that no token reaches
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def size(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes, shared storage once."""
    found = {item.data_ptr(): item.numel() * item.itemsize for item in tensors if item is not None}
    return sum(found.values())


def state_tensors(optimizer: Any) -> list[torch.Tensor]:
    """State but for step counters and the table of 8-bit values, which all tensors share."""
    return [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim() > 0 and not key.startswith("qmap")
    ]


def scales(model: nn.Module) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside packed weights, but for the tables that all layers share."""
    found = []
    for module in model.modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        if state is not None and state.nested:
            found += [state.absmax, state.state2.absmax]
        rows = getattr(weight, "SCB", None)
        rows = getattr(getattr(module, "state", None), "SCB", None) if rows is None else rows
        found += [] if rows is None else [rows]
    return found


def measure(model: nn.Module, optimizer: Any) -> MemoryUse:
    """Bytes of real tensors. Step counters and shared tables of the optimizer are left out."""
    named = list(model.named_parameters())
    trained = [p for _, p in named if p.requires_grad]
    adapters = [p for name, p in named if "lora_" in name]
    copies = [p for name, p in named if ".original_module." in name]
    kept = {p.data_ptr() for p in copies}
    frozen = [p for _, p in named if not p.requires_grad and p.data_ptr() not in kept]
    return MemoryUse(
        frozen_bytes=size(frozen) + size(scales(model)),
        copy_bytes=size(copies),
        full_bytes=size(trained) - size(adapters),
        adapter_bytes=size(adapters),
        gradient_bytes=size(p.grad for p in trained),
        optimizer_bytes=size(state_tensors(optimizer)),
    )


HYBRIDS = [(name, "adamw", master) for name in NAMES for master in ("fp32", "bf16")]
HYBRIDS += [
    (name, optimizer, master)
    for name in ("gpt2", "mixtral")
    for optimizer in OPTIMIZERS[1:]
    for master in ("fp32", "bf16")
]
# PEFT trains the biases of an `experts` module with it: a row for each expert.
HYBRIDS += [("gpt_oss", optimizer, "fp32") for optimizer in ("adamw", "adafactor", "adamw8bit")]


@pytest.mark.parametrize(("name", "optimizer", "master"), HYBRIDS)
def test_a_hybrid_takes_what_is_predicted(name: str, optimizer: Any, master: Any) -> None:
    model = FAMILIES[name].build(torch.bfloat16)
    memory = MemorySettings(optimizer=optimizer, master=master)
    choices = choices_for(model, CandidateSettings() if name in WITHOUT_EMBEDDING else EVERY)
    use = memory_use(identify(model, name, None), choices, memory)
    wrapped = wrap(model, choices, torch.float32 if master == "fp32" else torch.bfloat16)
    trained = [name for name, item in wrapped.named_parameters() if item.requires_grad]
    assert (name != "gpt_oss") or any(item.endswith("proj_bias") for item in trained)
    assert measure(wrapped, step(wrapped, optimizer)) == replace(use, activation_bytes=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe"])
def test_full_fine_tuning_takes_what_is_predicted(name: str, optimizer: Any) -> None:
    model = FAMILIES[name].build(torch.float32)
    size_of = identify(model, name, None)
    use = full_training(size_of, parameter_sizes(model), MemorySettings(optimizer=optimizer))
    assert measure(model, step(model, optimizer)) == replace(use, activation_bytes=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_packed_base_takes_what_is_predicted(name: str, bits: Any, tmp_path: Path) -> None:
    """Within 8 bytes per layer: scales are shared by whole groups of blocks."""
    pytest.importorskip("bitsandbytes")
    family = FAMILIES[name]

    def config() -> Any:
        """Widths that are multiples of 64, the block of 4-bit weights."""
        found = family.config()
        for key, width in (("hidden_size", 64), ("intermediate_size", 128), ("n_embd", 64),
                           ("n_inner", 128)):  # fmt: skip
            if key in found.to_dict():
                setattr(found, key, width)
        return found

    source = replace(family, config=config).build().to(torch.bfloat16)
    choices = choices_for(source, CandidateSettings())
    use = memory_use(identify(source, name, None), choices, MemorySettings(base_bits=bits))
    model = packed(source, bits, choices, tmp_path)
    wrapped = wrap(model, choices, torch.float32)
    # Before the step: on a CPU, bitsandbytes rearranges layers that need no gradient.
    before = measure(wrapped, SimpleNamespace(state={})).frozen_bytes
    found, expected = measure(wrapped, step(wrapped, "adamw")), use
    assert replace(found, frozen_bytes=0) == replace(expected, frozen_bytes=0, activation_bytes=0)
    layers = sum(isinstance(module, nn.Linear) for module in model.modules())
    assert before == pytest.approx(expected.frozen_bytes, abs=8 * layers, rel=0)


def packed(
    source: PreTrainedModel, bits: int, choices: Sequence[Choice], folder: Path
) -> PreTrainedModel:
    """The model loaded again with a packed base, what is trained in full aside."""
    save_model(folder, model=source)
    skipped = [*(item.row.module for item in choices if item.mode == "full"), "lm_head"]
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
           "bnb_4bit_compute_dtype": torch.bfloat16}  # fmt: skip
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, llm_int8_skip_modules=skipped,
        **(nf4 if bits == 4 else {}),
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )


def module(form: Any, matrices: int, rows: int, columns: int, bias: int) -> ModuleRow:
    layer, n_params = None if form == "embedding" else 0, matrices * rows * columns + bias
    return reports.row(0).changed(
        form=form, layer=layer, matrices=matrices, out_features=rows, in_features=columns,
        n_params=n_params,
    )  # fmt: skip


linear_like = st.sampled_from(["linear", "conv1d", "embedding", "parameter"])
sides, biases = st.integers(1, 300), st.sampled_from([0, 7])
modules = st.builds(module, linear_like, st.just(1), sides, sides, biases)
modules |= st.builds(module, st.just("experts"), st.integers(2, 5), sides, sides, st.just(0))
choices = st.builds(
    lambda row, mode, rank: Choice(row=row, mode=mode, rank=rank if mode == "lora" else 0),
    modules,
    st.sampled_from(["full", "lora", "frozen"]),
    st.integers(1, 40),
)
memories = st.builds(
    MemorySettings,
    optimizer=st.sampled_from(OPTIMIZERS),
    master=st.sampled_from(["fp32", "bf16"]),
    base_bits=st.sampled_from([4, 8, 16]),
    train_batch=st.integers(1, 8),
    train_length=st.integers(1, 4096),
)


@given(chosen=st.lists(choices, max_size=6), memory=memories)
@settings(deadline=None)
def test_extra_uses_add_up(chosen: list[Choice], memory: MemorySettings) -> None:
    use = memory_use(MODEL, chosen, memory)
    extra = sum(extra_use(item, memory).total_bytes for item in chosen)
    fixed = base_bytes(MODEL, memory) + activation_bytes(MODEL.dimensions, memory)
    assert use.total_bytes == fixed + extra
    assert use.total_bytes == sum(asdict(use).values())
    assert use.state_bytes == use.total_bytes - use.activation_bytes
    assert all(extra_use(item, memory).total_bytes >= 0 for item in chosen)


# Model, vocabulary, batch, length, GiB as benchmarks/memory.py measured them with LoRA.
MEASURED = (
    ("llama-3.1-8b", None, 1, 2048, 3.47), ("llama-3.1-8b", None, 1, 16384, 27.7),
    ("llama-3.1-8b", 1000, 1, 2048, 1.16), ("qwen3-8b", None, 8, 512, 8.14),
    ("qwen3-8b", 1000, 1, 8192, 4.82), ("gpt2", None, 1, 1024, 0.599),
    ("gpt2", 1000, 8, 1024, 0.775), ("qwen3-30b-a3b", None, 1, 512, 1.72),
    ("qwen3-30b-a3b", None, 1, 4096, 7.74), ("qwen3-30b-a3b", 1000, 1, 4096, 3.08),
)  # fmt: skip


@pytest.mark.parametrize(("name", "vocabulary", "batch", "length", "gib"), MEASURED, ids=str)
def test_activations_are_near_the_measured_ones(
    name: str, vocabulary: int | None, batch: int, length: int, gib: float
) -> None:
    model, _ = load_shape(ModelSettings(model=str(CONFIGS / name)))
    sizes = dimensions(model, candidates_of(find_modules(model)))
    if vocabulary is not None:
        sizes = replace(sizes, vocab_size=vocabulary)
    memory = MemorySettings(train_batch=batch, train_length=length)
    assert 0.9 < activation_bytes(sizes, memory) / (gib * 1024**3) < 1.4
