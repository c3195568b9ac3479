"""The study on a real model, on a tiny one: trainings against plain loops, resuming, tables."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from tokens import VOCAB_SIZE, byte_tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "evidence"


@pytest.fixture(scope="module", autouse=True)
def _path() -> Iterator[None]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            sys.modules.pop(name)


def part(name: str) -> ModuleType:
    return importlib.import_module(name)


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=True, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"add {n} {n + 3}\n", "completion": f" {2 * n + 3}"}
        for n in range(start, start + count)
    ]


def examples(count: int, start: int = 0) -> Any:
    study, training = part("real_study"), part("real_training")
    encoded = study.encoded(rows(count, start), byte_tokenizer(), tiny_model())
    length = max(len(item.input_ids) for item in encoded)
    return encoded, training.tensors_of(encoded, length, 8, torch.device("cpu"))


def lora(**options: Any) -> Any:
    config = peft.LoraConfig(r=2, target_modules="all-linear", **options)
    torch.manual_seed(3)
    return peft.get_peft_model(tiny_model(), config)


def hybrid() -> Any:
    return lora(modules_to_save=["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"],
                exclude_modules=r".*(0.mlp.down_proj|1.self_attn.q_proj)")  # fmt: skip


@pytest.mark.parametrize(
    "wrapped",
    [
        hybrid,
        lambda: lora(use_dora=True, lora_alpha=7),
        lambda: lora(use_rslora=True, init_lora_weights="pissa"),
    ],
)
def test_trainings_equal_plain_loops_over_the_wrapped_model(wrapped: Any) -> None:
    training = part("real_training")
    encoded, data = examples(24)
    trials = [
        training.Trial(seed=0, full_rate=1e-3, lora_rate=1e-2),
        training.Trial(seed=1, full_rate=3e-3, lora_rate=2e-2),
    ]
    linears = training.linears_of(wrapped())
    stack = training.Stack(tiny_model(), linears, data, trainings=2, steps=5, batch=4)
    for _ in range(2):  # the second run starts anew
        stack.run(trials, [linears] * 2)
    for place, trial in enumerate(trials):
        model = wrapped()
        groups = [
            {"params": [p], "lr": trial.full_rate if "modules_to_save" in n else trial.lora_rate}
            for n, p in model.named_parameters()
            if p.requires_grad
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        peaks = [group["lr"] for group in optimizer.param_groups]
        losses = []
        for step, chosen in enumerate(training.data_order(trial.seed, 24, 5, 4), 1):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(step / 0.25, (6 - step) / 4.75, 1.0)
            losses.append(plain_loss(model, [encoded[row] for row in chosen])[0])
            optimizer.zero_grad()
            losses[-1].backward()
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
        found = stack.curve[:, place]
        assert torch.allclose(found, torch.stack(losses).detach(), rtol=2e-4)
        measured = stack.measure(data, batch=10)[place]
        expected, right = plain_loss(model, encoded)
        assert measured.loss == pytest.approx(expected.item(), rel=5e-4)
        assert measured.accuracy == pytest.approx(right)


def plain_loss(model: Any, chosen: Any) -> tuple[torch.Tensor, float]:
    """Mean over counted tokens, one example after the other; share of exact answers."""
    sums, exact = [], []
    for item in chosen:
        logits = model(input_ids=torch.tensor([item.input_ids])).logits[0, :-1]
        targets = torch.tensor(item.input_ids[1:])
        counted = torch.tensor(item.counted[1:])
        nats = functional.cross_entropy(logits, targets, reduction="none")
        sums.append(nats[counted].sum())
        exact.append(bool((logits.argmax(dim=-1) == targets)[counted].all()))
    count = sum(item.counted_tokens for item in chosen)
    return torch.stack(sums).sum() / count, sum(exact) / len(exact)
