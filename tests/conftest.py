"""Shared fixtures: every probed model must come back untouched, whatever the test did to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hlscore.gradients import capture
from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings

# The models are so small that more threads only wait for each other.
torch.set_num_threads(1)


def checksum(parameter: torch.Tensor) -> str:
    """Hash of the content of a parameter, bit for bit; empty where it is not in memory."""
    if parameter.is_meta or hasattr(parameter, "full_tensor"):
        return ""
    content = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


class Weight:
    """Content of a weight: equal where nothing was written, or where the same bits are there again.

    A hash is compared only where something was written: the file that a weight was mapped from may
    have been replaced since.
    """

    def __init__(self, parameter: torch.Tensor) -> None:
        self._parameter = parameter
        self._version = None if parameter.is_inference() else parameter._version
        self._hash = checksum(parameter)

    def unchanged(self) -> bool:
        """Whether the weight holds what it did."""
        now = None if self._parameter.is_inference() else self._parameter._version
        return now == self._version or checksum(self._parameter) == self._hash


def footprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that a probe run could leave behind, but the content of weights."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"{name}:attributes"] = sorted(set(module.__dict__))
        state[f"{name}:training"] = module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            state[f"{name}:{hooks}"] = len(getattr(module, hooks))
        config = getattr(module, "config", None)
        state[f"{name}:experts"] = getattr(config, "_experts_implementation_internal", None)
    for name, parameter in model.named_parameters():
        hooks_after = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
        state[name] = (
            parameter.requires_grad,
            parameter.dtype,
            parameter.data_ptr(),
            None if parameter.grad is None else parameter.grad.data_ptr(),
            len(hooks_after),
            len(parameter._backward_hooks or {}),
        )
    return state


@pytest.fixture(autouse=True)
def untouched_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare every model that was captured in a test with what it was before."""
    seen: list[tuple[PreTrainedModel, dict[str, Any]]] = []
    weights: list[Weight] = []
    enter = capture.GradientCapture.__enter__

    def watched(self: capture.GradientCapture) -> capture.GradientCapture:
        seen.append((self._model, footprint(self._model)))
        weights.extend(map(Weight, self._model.parameters()))
        return enter(self)

    known = set(ALL_EXPERTS_FUNCTIONS)
    monkeypatch.setattr(capture.GradientCapture, "__enter__", watched)
    yield
    assert set(ALL_EXPERTS_FUNCTIONS) == known, "a way to run experts was left registered"
    assert all(weight.unchanged() for weight in weights), "a weight was left changed"
    for model, before in seen:
        after = footprint(model)
        changed = [key for key, value in before.items() if after.get(key) != value]
        assert not changed, f"left changed on the model: {changed[:3]}"
        assert after.keys() == before.keys()


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The built-in model and its tokenizer."""
    loaded = load_model(ModelSettings(model="builtin:tiny"))
    return loaded.model, loaded.tokenizer


# Files whose tests start whole processes: run first, so that no worker waits for one of them.
SLOW = {
    "test_torchrun.py", "test_resume_command.py", "test_grpo_command.py", "test_processes.py",
    "test_check_fuzz.py", "test_pre_commit.py", "test_action.py", "test_real_study.py",
    "test_command.py", "test_trl.py", "test_trainers.py", "test_bad_input.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first; the order within a file stays."""
    items.sort(key=lambda item: item.path.name not in SLOW)
