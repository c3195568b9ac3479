"""Real training by a plan: what moves, at which rate, and what comes out of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import families
import peft
import pytest
import torch
import trl
from datasets import Dataset
from plans import plan_for
from training_runs import PAIRS, ROWS, changed, logits, planned, planned_model, two_blocks, weights
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.errors import UsageError
from hlscore.training.apply import apply
from hlscore.training.groups import param_groups
from hlscore.training.merge import merge
from hlscore.training.mixin import HybridTrainerMixin

LOCKS = ("*down_proj=full", "*.0.*o_proj=frozen", "*.1.*q_proj=rank:2")
STEPS = 3


def tiny(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The trained tiny model with its first two blocks only."""
    source = two_blocks().model
    model = type(source)(type(source.config).from_dict(source.config.to_dict()))
    model.load_state_dict(source.state_dict())
    return model.to(dtype)


@functools.cache
def tiny_plan() -> Plan:
    return plan_for(tiny(), LOCKS)


def _characters(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 7) for text in completions]


def _tokens() -> Dataset:
    tokenizer = two_blocks().tokenizer
    ids = [tokenizer(row["prompt"] + row["completion"])["input_ids"] for row in ROWS]
    return Dataset.from_list([{"input_ids": row[:24], "labels": row[:24]} for row in ids])


def _columns(*names: str) -> Dataset:
    return Dataset.from_list([{name: row[name] for name in names} for row in ROWS])


# Class, class of the arguments, their own options, and data of each kind of trainer.
KINDS: dict[str, tuple[Any, Any, dict[str, Any], Callable[[], Dataset]]] = {
    "trainer": (Trainer, TrainingArguments, {}, _tokens),
    "sft": (trl.SFTTrainer, trl.SFTConfig, {"max_length": 48},
            lambda: _columns("prompt", "completion")),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, {"max_length": 48}, lambda: Dataset.from_list(PAIRS)),
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"num_generations": 2, "max_completion_length": 8},
             lambda: _columns("prompt")),
}  # fmt: skip


def make_trainer(method: str, model: Any, out: Path, **changes: Any) -> Any:
    """A trainer of one of four kinds with the mixin, on the tiny data."""
    kind, arguments, options, data = KINDS[method]
    names = ("full_lr", "lora_lr", "plan", "peft_config")
    own: dict[str, Any] = {name: changes.pop(name) for name in names if name in changes}
    if method != "trainer":
        own["processing_class"] = two_blocks().tokenizer
    if method == "grpo":
        own["reward_funcs"] = _characters
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": 2,
        "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "bf16": False, "seed": 3, "disable_tqdm": True,
    }  # fmt: skip
    return type("Hybrid", (HybridTrainerMixin, kind), {})(
        model, args=arguments(**settings | options | changes), train_dataset=data(),
        **{"plan": tiny_plan(), **own},
    )  # fmt: skip


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("method", ["trainer", "sft", "dpo", "grpo"])
def test_a_trainer_changes_what_the_plan_says(method: str, tmp_path: Path) -> None:
    path, model = tmp_path / "plan.json", tiny()
    write_plan(tiny_plan(), path)
    before = weights(model)
    trainer = make_trainer(method, model, tmp_path, plan=path, full_lr=1e-3, lora_lr=1e-2)
    trainer.train()
    trained = logits(trainer.model)
    trainer.save_model(str(tmp_path / "adapter"))
    merged = merge(trainer.model)
    assert changed(before, weights(merged)) == planned(tiny_plan(), merged)
    merged.save_pretrained(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    again = peft.PeftModel.from_pretrained(tiny(), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for found in (merged, again, plain):
        torch.testing.assert_close(logits(found), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["trainer", "sft"])
@pytest.mark.parametrize(("zero", "moves"), [("full_lr", "lora"), ("lora_lr", "full")])
def test_a_rate_of_zero_holds_its_group(method: str, zero: str, moves: str, tmp_path: Path) -> None:
    model = tiny()
    before = weights(model)
    trainer = make_trainer(method, model, tmp_path, **{zero: 0.0}, weight_decay=0.1)
    trainer.train()
    assert changed(before, weights(merge(trainer.model))) == {
        item.parameter for item in tiny_plan().modules if item.mode == moves
    }


def test_both_rates_follow_the_scheduler(tmp_path: Path) -> None:
    trainer = make_trainer(
        "sft", tiny(), tmp_path, full_lr=1e-4, lora_lr=1e-3, lr_scheduler_type="linear",
        optim="sgd",
    )  # fmt: skip
    trainer.train()
    for name, rate in (("full", 1e-4), ("lora", 1e-3)):
        falling = [rate * (1 - done / STEPS) for done in range(STEPS)]
        assert logged(trainer, f"learning_rate_{name}") == pytest.approx(falling)


@pytest.mark.parametrize("name", ["full_lr", "lora_lr"])
def test_one_step_is_as_long_as_its_rate(name: str, tmp_path: Path) -> None:
    part = ".modules_to_save." if name == "full_lr" else ".lora_B."
    moved = []
    for rate in (0.01, 0.02):
        trainer = make_trainer(
            "trainer", tiny(), tmp_path, **{name: rate}, optim="sgd", max_steps=1, max_grad_norm=0.0
        )
        key, value = next(
            item for item in trainer.model.named_parameters()
            if part in item[0] and item[1].requires_grad
        )  # fmt: skip
        start = value.detach().clone()
        trainer.train()
        moved.append(dict(trainer.model.named_parameters())[key].detach() - start)
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(2 * moved[0], moved[1], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("method", ["trainer", "sft"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(method, tiny(), tmp_path, **saving)
    whole.train()
    resumed = make_trainer(method, tiny(), tmp_path, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(resumed) == pytest.approx(logged(whole), abs=1e-6)
    assert [item["lr"] for item in resumed.optimizer.param_groups] == [0.0, 0.0]
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0, msg=name)


def test_a_merge_says_what_rounding_loses_and_float32_keeps_it() -> None:
    def trained() -> tuple[Any, dict[str, torch.Tensor]]:
        """Weights moved by a hundredth of their last place in bfloat16, adapters by a lot."""
        model = tiny(torch.bfloat16)
        before = {name: value.float() for name, value in model.state_dict().items()}
        wrapped = apply(model, tiny_plan())
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad and "modules_to_save" in name:
                    parameter.mul_(1 + 2**-14)
                elif "lora_B" in name:
                    parameter.fill_(0.1)
        return wrapped, before

    wrapped, before = trained()
    with pytest.warns(UserWarning, match=r"keeps .*: 0 % of that of full modules and \d\d"):
        rounded = merge(wrapped).state_dict()
    full = {item.parameter for item in tiny_plan().full}
    assert all(torch.equal(rounded[name].float(), before[name]) for name in full)
    wrapped, _ = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = merge(wrapped, dtype="float32").state_dict()
    assert {value.dtype for value in whole.values()} == {torch.float32}
    for name in full:
        torch.testing.assert_close(whole[name], before[name] * (1 + 2**-14), rtol=1e-7, atol=0)
    with pytest.raises(UsageError, match="dtype is 'int8'"):
        merge(trained()[0], dtype="int8")


@pytest.mark.parametrize("method", ["trainer", "sft", "grpo"])
def test_small_steps_count_in_a_model_of_16_bits(method: str, tmp_path: Path) -> None:
    model = tiny(torch.bfloat16)
    trainer = make_trainer(method, model, tmp_path, full_lr=1e-6, bf16=True)
    held = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in held.items()}
    assert {value.dtype for value in held.values()} == {torch.float32}
    trainer.train()
    name = next(name for name in held if "modules_to_save" in name)
    if method != "grpo":
        assert (held[name] != before[name]).float().mean() > 0.9
    trained = logits(trainer.model)
    merged = merge(trainer.model)
    assert {value.dtype for value in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(merged), trained, atol=0.3, rtol=0.1)


def test_merging_rounds_once() -> None:
    model = tiny(torch.bfloat16)
    before = weights(model)
    wrapped = apply(model, tiny_plan())
    name = "model.layers.1.self_attn.k_proj"
    layer = wrapped.get_submodule(f"base_model.model.{name}")
    with torch.no_grad():
        layer.lora_B.default.weight.normal_(std=0.01)
    delta = layer.get_delta_weight("default")
    expected = (before[f"{name}.weight"].float() + delta.float()).bfloat16()
    assert torch.equal(merge(wrapped).get_parameter(f"{name}.weight"), expected)


@pytest.mark.parametrize(
    ("family", "locks", "embeddings"),
    [
        ("qwen3", ("*embed_tokens=full",), True),
        ("qwen3", ("*down_proj=full",), False),
        ("gpt2", ("*c_proj=full",), False),
        ("llama", ("*=full",), False),
        ("llama", ("*=lora",), False),
        ("qwen3_moe", ("*.0.*experts*=full", "*.1.mlp.gate=full"), False),
        ("gpt_oss", ("*.0.*experts*=full",), False),
    ],
)
def test_merged_models_are_plain(
    family: str, locks: tuple[str, ...], embeddings: bool, tmp_path: Path
) -> None:
    model, plan = planned_model(family, locks, embeddings=embeddings)
    wrapped = apply(model, plan)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    trained = logits(wrapped)
    merged = merge(wrapped)
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is type(families.FAMILIES[family].build())
    torch.testing.assert_close(logits(plain), trained, atol=1e-5, rtol=1e-5)


def test_groups_have_rates_and_decays_of_their_own(tmp_path: Path) -> None:
    model, plan = planned_model("gpt2", ("*c_proj=full",))
    wrapped = apply(model, plan)
    write_plan(plan, tmp_path / "plan.json")
    read = param_groups(wrapped, str(tmp_path / "plan.json"))
    assert [item["name"] for item in read] == ["full", "full_no_decay", "lora"]
    with pytest.raises(UsageError, match="full_lr is -1"):
        param_groups(wrapped, plan, full_lr=-1)
    found = param_groups(wrapped, plan, lora_lr=0.5, weight_decay=0.1, full_weight_decay=0.2)
    suggested = plan.learning_rates.full.value
    assert [(item["name"], item["lr"], item["weight_decay"]) for item in found] == [
        ("full", suggested, 0.2), ("full_no_decay", suggested, 0.0), ("lora", 0.5, 0.1),
    ]  # fmt: skip
    assert {parameter.ndim for parameter in found[1]["params"]} == {1}
    trained = [item for item in wrapped.parameters() if item.requires_grad]
    assert sum(len(item["params"]) for item in found) == len(trained)
    torch.optim.AdamW(found)


def test_groups_refuse_what_the_plan_does_not_train() -> None:
    with pytest.raises(UsageError, match="has no plan applied"):
        param_groups(tiny(), tiny_plan())
    wrapped = apply(tiny(), tiny_plan())
    wrapped.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with pytest.raises(UsageError, match=r"norm\.weight"):
        param_groups(wrapped, tiny_plan())


def test_trainers_say_what_they_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="autocast"):
        make_trainer("trainer", tiny(torch.bfloat16), tmp_path)
    trainer = make_trainer("trainer", tiny(), tmp_path)
    trainer.optimizer_cls_and_kwargs = torch.optim.SGD, {"optimizer_dict": {}}
    with pytest.raises(UsageError, match="groups of its own"):
        trainer.create_optimizer()
    with pytest.raises(UsageError, match="peft_config"):
        make_trainer("sft", tiny(), tmp_path, peft_config=peft.LoraConfig())
    with pytest.raises(UsageError, match="nothing to merge"):
        merge(tiny())  # type: ignore[arg-type]


@pytest.mark.parametrize("optim", ["adafactor", "adamw_torch", "rmsprop"])
def test_the_optimizer_is_the_one_asked_for(optim: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", tiny(), tmp_path, optim=optim)
    found = trainer.create_optimizer()
    assert type(found).__name__.lower() == optim.removesuffix("_torch")
    assert [item["name"] for item in found.param_groups] == ["full", "lora"]
    assert trainer.create_optimizer() is found


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(
            "trainer", apply(tiny(), tiny_plan()), tmp_path, gradient_checkpointing=checkpointing
        )
        trainer.train()
        found.append(logged(trainer))
        merged = merge(trainer.model)
        assert not any(getattr(item, "gradient_checkpointing", False) for item in merged.modules())
    assert found[0] == pytest.approx(found[1], abs=1e-5)
