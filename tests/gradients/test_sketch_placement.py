"""The sketch estimator on quantized and offloaded weights, against gradients of plain ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from console import hlscore, save_model
from loading import deepen, half_on_disk, widen
from problems import completions, differing, run_report, scored, settings
from transformers import PreTrainedModel

from hlscore.artifacts.report import read_report
from hlscore.errors import CaptureError
from hlscore.inputs.model import load_model
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.weights import dense_weight
from hlscore.settings import CandidateSettings, ModelSettings

EXAMPLES = completions(12)
WHOLE = {"estimator": "sketch", "sketch_size": 1024}
FLOAT32 = 2.0**-23


def quantized(folder: Path, name: str, load_in: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A quantized model, and a plain one with the weights that it stands for."""
    plain = widen(name)
    save_model(folder, model=plain)
    packed = load_model(ModelSettings(model=str(folder), device="cpu", load_in=load_in)).model
    for item in candidates_of(find_modules(packed, CandidateSettings())):
        weight = dense_weight(packed, item)
        assert weight is not None
        with torch.no_grad():
            plain.get_parameter(item.parameter).copy_(weight)
    return packed, plain


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_4bit_sketches_are_those_of_the_weights_they_stand_for(
    tmp_path: Path, name: str, checkpointing: bool
) -> None:
    pytest.importorskip("bitsandbytes")
    packed, plain = quantized(tmp_path, name, "4bit")
    run = settings(**WHOLE, checkpointing=checkpointing)
    found = scored(packed, EXAMPLES, run)
    expected = scored(plain, EXAMPLES, settings(estimator="exact"))
    assert not differing(found, expected, 1e-3, "grad_energy", "tail_energy")
    assert not differing(found, expected, 1e-2, "hls", floor=1e-4)
    assert not differing(found, expected, 1e-4, "weight_norm")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_8bit_sketches_are_near_those_of_the_weights_they_stand_for(
    tmp_path: Path, name: str
) -> None:
    # 8-bit layers round their inputs too, so that the loss itself is another one.
    pytest.importorskip("bitsandbytes")
    packed, plain = quantized(tmp_path, name, "8bit")
    found = scored(packed, EXAMPLES, settings(**WHOLE))
    expected = scored(plain, EXAMPLES, settings(estimator="exact"))
    assert not differing(found, expected, 0.1, "grad_energy")


def test_quantized_rank_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = hlscore(
        "rank", "builtin:tiny", "--load-in", "4bit", "--samples", "16", "--bootstrap", "10",
        "-o", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = read_report(tmp_path / "out" / "scores.parquet")
    assert report.run.estimator == "sketch"
    assert "quantized" in report.run.notes[0]
    assert all(row.weight_norm for row in report.candidates)
    refused = hlscore(
        "rank", "builtin:tiny", "--load-in", "4bit", "--estimator", "exact", "--samples", "4",
        "-o", tmp_path / "no", "--device", "cpu",
    )  # fmt: skip
    assert refused.code == 3
    assert "is quantized and can hold no gradient" in refused.message
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_blocks_on_disk_give_the_same_sketches(
    tmp_path: Path, name: str, checkpointing: bool
) -> None:
    pytest.importorskip("accelerate")
    model = deepen(name)
    folder = save_model(tmp_path / "model", model=copy.deepcopy(model))
    offloaded = load_model(half_on_disk(folder, model)).model
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    run = settings(checkpointing=checkpointing, estimator="sketch", sketch_size=16)
    found = scored(offloaded, EXAMPLES, run)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    expected = scored(model, EXAMPLES, run)
    routers = {module for module in expected if module.endswith("mlp.gate")}
    assert {*expected} - {*found} <= routers  # those on disk, which no linear layer computes with
    there = {module: expected[module] for module in found}
    assert not differing(found, there, 1e-5, "grad_energy", "weight_norm")
    assert not differing(found, there, 1e-4, "hls", floor=10 * FLOAT32)
    with pytest.raises(CaptureError, match="is offloaded and can hold no gradient"):
        run_report(offloaded, EXAMPLES, settings(estimator="exact"))
