"""Models that cannot be probed as they are: gradients that are cut off, rows that interact,
weights that change when the model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import checksum
from console import QUICK, hlscore, save_model, write_rows
from families import FAMILIES, PAD_ID
from tokens import byte_tokenizer
from torch import nn
from transformers import CpmAntConfig, CpmAntForCausalLM, PreTrainedModel, RwkvConfig
from transformers import RwkvForCausalLM as Rwkv

import hlscore as package
from hlscore.errors import CaptureError
from hlscore.gradients.passes import weights_as_trained
from hlscore.gradients.self_check import try_model
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.records import NO_PROBES

ESTIMATORS = ("exact", "sketch")
ROWS = [{"text": f"{17**number} in words, of length {number} " * 3} for number in range(8)]


def probes() -> ProbeSet:
    generator = torch.Generator().manual_seed(0)
    rows = tuple(
        ProbeExample(
            tuple(torch.randint(0, 256, (length,), generator=generator).tolist()),
            (False, *(True,) * (length - 1)),
        )
        for length in (60, 40, 30)
    )
    units = tuple(ProbeUnit((row,), row.counted_tokens) for row in rows)
    return ProbeSet(
        units=((units[:1],), (units[1:],)), counts=((59,), (68,)), summary=NO_PROBES,
        pad_token_id=PAD_ID,
    )  # fmt: skip


def ranked(model: PreTrainedModel, **options: Any) -> package.RankResult:
    return package.rank(model, byte_tokenizer(), data=ROWS, rank=2, budget=0.2, **options)


def scores(result: package.RankResult) -> dict[str, float | None]:
    return {row.module: row.grad_energy for row in result.report.rows if row.is_candidate}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_ordinary_models_pass(name: str, dtype: torch.dtype) -> None:
    difference, _, rounding = try_model(FAMILIES[name].build(dtype), probes())
    assert difference < rounding / 10


class Forward(torch.autograd.Function):
    """A product with a kernel that gives no gradient back to its input."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return inputs @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None


class Packed(nn.Module):
    """A packed linear layer; `kernel` says what its kernel does backward."""

    def __init__(self, linear: nn.Module, kernel: str) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.scale = float(weight.abs().max()) / 127
        self.register_buffer("packed", (weight / self.scale).round().to(torch.int8))
        self.kernel = kernel

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.packed.float() * self.scale
        if self.kernel == "none":
            with torch.no_grad():
                return inputs @ weight.T
        return Forward.apply(inputs, weight) if self.kernel == "drops" else inputs @ weight.T


def pack(model: PreTrainedModel, name: str, kernel: str) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, Packed(model.get_submodule(name), kernel))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["none", "drops"])
@pytest.mark.parametrize("layer", ["mlp.down_proj", "self_attn.q_proj"])
def test_a_packed_layer_without_a_backward_pass_is_named(
    layer: str, kernel: str, estimator: str
) -> None:
    model = FAMILIES["llama"].build()
    pack(model, f"model.layers.1.{layer}", kernel)
    with pytest.raises(CaptureError, match=rf"through 'model.layers.1.{layer}' \(Packed\)"):
        ranked(model, estimator=estimator, exclude=(f"*.1.{layer}",))


def test_a_packed_layer_with_a_backward_pass_is_not() -> None:
    model = FAMILIES["llama"].build()
    pack(model, "model.layers.1.mlp.down_proj", "whole")
    assert ranked(model, estimator="sketch").plan.modules


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("layers.0.self_attn.o_proj", "to the input of"),
        ("layers.1.input_layernorm", "through"),
        ("layers.1.mlp.act_fn", "through"),
    ],
)
def test_other_kernels_without_a_backward_pass_are_named(module: str, message: str) -> None:
    model = FAMILIES["llama"].build()
    cut = model.get_submodule(f"model.{module}")
    if message == "through":
        cut.register_forward_hook(lambda *given: given[-1].detach())
    else:
        cut.register_forward_pre_hook(lambda _, args: (args[0].detach(),))
    with pytest.raises(CaptureError, match=f"{message} 'model.{module}'"):
        ranked(model)


def test_weights_of_zero_are_no_cut() -> None:
    model = FAMILIES["llama"].build()
    for name, parameter in model.named_parameters():
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            nn.init.zeros_(parameter)
    assert ranked(model).plan.modules


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_model_that_assumes_other_padding_runs_one_example_at_a_time(estimator: str) -> None:
    config = CpmAntConfig(
        vocab_size=300, hidden_size=32, num_attention_heads=2, dim_head=16, dim_ff=48,
        num_hidden_layers=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CpmAntForCausalLM(config).eval()
    batched, single = (ranked(model, estimator=estimator, batch_size=size) for size in (8, 1))
    assert scores(batched) == scores(single)
    assert sum("one at a time" in note for note in batched.report.run.notes) == 1
    assert not any("one at a time" in note for note in single.report.run.notes)


def test_rows_that_interact_run_alone_and_the_command_says_so(tmp_path: Path) -> None:
    model = FAMILIES["llama"].build()
    difference, _, rounding = try_model(model, probes())
    assert difference < rounding

    def mix(*given: Any) -> torch.Tensor:
        output: torch.Tensor = given[-1]
        return output + output.mean(0, keepdim=True)

    model.get_submodule("model.layers.0.mlp").register_forward_hook(mix)
    difference, _, rounding = try_model(model, probes())
    assert difference > rounding
    result = ranked(model)
    assert any("one at a time" in note for note in result.report.run.notes)
    # Saved, the hook is gone: nothing is said of an ordinary model.
    folder, data = save_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", ROWS)
    done = hlscore("rank", folder, *QUICK, "--data", data, "-o", tmp_path / "out")
    assert done.code == 0
    assert not any("one at a time" in note for note in done.notes)


def rwkv(rescale_every: int) -> PreTrainedModel:
    config = RwkvConfig(
        vocab_size=300, hidden_size=16, attention_hidden_size=16, num_hidden_layers=4,
        context_length=256, rescale_every=rescale_every,
    )  # fmt: skip
    torch.manual_seed(0)
    return Rwkv(config).eval()


def test_rwkv_is_scored_with_the_weights_that_train_and_comes_back_unchanged() -> None:
    model, plain = rwkv(2), rwkv(0)
    found, wanted = (scores(ranked(item, samples=4, max_length=12)) for item in (model, plain))
    assert found == wanted
    assert (model.config.rescale_every, model.rwkv.layers_are_rescaled) == (2, False)


def test_rwkv_that_ran_before_has_its_weights_rescaled_again_afterwards() -> None:
    model, ids = rwkv(2), torch.arange(5)[None]

    def checksums() -> list[str]:
        return [checksum(parameter) for parameter in model.parameters()]

    before = checksums()
    model(input_ids=ids)
    rescaled = checksums()
    assert rescaled != before
    with weights_as_trained(model):
        model(input_ids=ids)
        assert checksums() == before
    assert checksums() == rescaled
    assert (model.config.rescale_every, model.rwkv.layers_are_rescaled) == (2, True)


@pytest.mark.parametrize("late", [False, True])
def test_weights_that_change_while_the_model_runs_are_refused(late: bool) -> None:
    model, passes = FAMILIES["llama"].build(), 0

    def write(module: nn.Module, *_: Any) -> None:
        nonlocal passes
        passes += 1
        if not late or passes == 6:
            module.down_proj.weight.data.mul_(0.5)

    model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(write)
    with pytest.raises(CaptureError, match=r"changed while it was probed.*layers.1.mlp.down_proj"):
        ranked(model, batch_size=2)
