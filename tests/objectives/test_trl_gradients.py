"""Gradients of every objective, against TRL's own trainers on the same batch and model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl_runs import arguments, build, captured, dpo_trainer

from hlscore.inputs.formats import SUPERVISED, example_set
from hlscore.objectives.preference import PAIR_LOSSES
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.settings import DataSettings, ObjectiveSettings

RELATIVE = (
    "llama", "mistral", "gemma3", "phi3", "gpt_neox", "olmo2", "mixtral", "qwen3_moe", "gpt_oss",
    "deepseek_v3",
)  # fmt: skip
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
TOLERANCE = 1e-5

SFT_ROWS = [
    {"prompt": "2 + 3 =", "completion": " 5"},
    {"prompt": "name a colour: ", "completion": "blue, or green"},
    {"prompt": "x", "completion": "yyyy"},
    {"prompt": "count to three ", "completion": "1 2 3"},
]


def turns(row: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


PAIRS = [
    {"prompt": "2 + 3 =", "chosen": " 5", "rejected": " 6 or seven"},
    {"prompt": "name a colour: ", "chosen": "blue, or green", "rejected": "table"},
    {"prompt": "x", "chosen": "yy", "rejected": "z"},
    {"prompt": "count to three ", "chosen": "1 2 3", "rejected": "1 2 4 8"},
]
CHAT_PAIRS = [
    {key: [{"role": "user" if key == "prompt" else "assistant", "content": text}]
     for key, text in row.items()}
    for row in PAIRS
]  # fmt: skip


def assert_equal(
    found: Mapping[str, torch.Tensor], model: PreTrainedModel, tolerance: float = TOLERANCE
) -> None:
    """Every captured gradient is the one that a trainer left in the model."""
    assert found
    for name, gradient in found.items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        expected = expected.flatten()
        assert float(expected.norm()) > 0
        error = float((gradient - expected).norm() / expected.norm())
        assert error < tolerance, name


def first_gradient(trainer: Any) -> PreTrainedModel:
    """Run TRL's own loss on its first batch, backward, without a step."""
    model: PreTrainedModel = trainer.model
    model.eval()  # no dropout; TRL's normalizers of a single batch are the same in both modes
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
    loss.backward()
    return model


SFT_FORMATS: dict[str, list[dict[str, Any]]] = {
    "prompt_completion": SFT_ROWS,
    "text": [{"text": row["prompt"] + row["completion"]} for row in SFT_ROWS],
    "messages": [{"messages": turns(row)} for row in SFT_ROWS],
    "conversation": [{"prompt": turns(row)[:1], "completion": turns(row)[1:]} for row in SFT_ROWS],
}


@pytest.mark.parametrize(
    ("name", "assistant_only"),
    [*((name, False) for name in SFT_FORMATS), ("messages", True), ("conversation", True)],
)
def test_sft(tmp_path: Path, name: str, assistant_only: bool) -> None:
    rows = SFT_FORMATS[name]
    chat = name in ("messages", "conversation")
    tokens = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION if chat else None)
    trainer = SFTTrainer(
        model=build(),
        args=SFTConfig(
            **arguments(tmp_path),
            packing=False,
            max_length=None,
            assistant_only_loss=assistant_only,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokens,
    )
    trained = first_gradient(trainer)
    examples = example_set(rows, "rows", DataSettings(), SUPERVISED)
    objective = ObjectiveSettings(assistant_only_loss=assistant_only)
    assert_equal(captured(build(), examples, objective, tokens), trained)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("loss_type", list(PAIR_LOSSES))
def test_dpo_at_step_0(tmp_path: Path, loss_type: str, chat: bool) -> None:
    rows = CHAT_PAIRS if chat else PAIRS
    tokens = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION if chat else None)
    trained = first_gradient(dpo_trainer(tmp_path, rows, tokens, loss_type=[loss_type], beta=0.3))
    objective = ObjectiveSettings(objective="dpo", loss_type=loss_type, beta=0.3)
    examples = example_set(rows, "rows", DataSettings(), ("preference",))
    assert_equal(captured(build(), examples, objective, tokens), trained)


# Rewards of four prompts with four completions each: mixed, equal, graded, one not judged.
REWARDS: tuple[tuple[float | None, ...], ...] = (
    (1.0, 0.0, 0.0, 1.0),
    (1.0, 1.0, 1.0, 1.0),
    (0.1, 0.7, -0.3, 0.2),
    (1.0, 0.0, None, 0.0),
)
MOST_TOKENS = 12


def grpo(loss_type: str, **options: Any) -> ObjectiveSettings:
    return ObjectiveSettings(
        objective="grpo", loss_type=loss_type, rollouts="drawn", max_new_tokens=MOST_TOKENS,
        **options,
    )  # fmt: skip


def drawn_rollouts(*, old: bool = False) -> RolloutSet:
    """Seeded random completions of differing length; the last of each ends in time."""
    draw = torch.Generator().manual_seed(0)
    groups = []
    for number, rewards in enumerate(REWARDS):
        length = int(torch.randint(3, 7, (), generator=draw))
        prompt = tuple(torch.randint(0, 250, (length,), generator=draw).tolist())
        rollouts = []
        for index, reward in enumerate(rewards):
            size = int(torch.randint(2, MOST_TOKENS, (), generator=draw))
            ids = torch.randint(0, 250, (size,), generator=draw).tolist()
            noise = torch.randn(size, generator=draw).tolist() if old else []
            rollouts.append(Rollout(
                prompt=f"prompt {number}", prompt_ids=prompt, completion="",
                completion_ids=tuple(ids), reward=reward, truncated=index < 2,
                log_probs=tuple(noise),
            ))  # fmt: skip
        groups.append(RolloutGroup(name=str(number), rollouts=tuple(rollouts)))
    return RolloutSet(source="drawn", groups=tuple(groups))


def with_old_log_probs(rollouts: RolloutSet, model: PreTrainedModel, temperature: float) -> Any:
    """Old log-probabilities near the model's own: noise of a third, some of it clipped."""
    groups = []
    for group in rollouts.groups:
        items = []
        for item in group.rollouts:
            ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
            with torch.no_grad():
                own = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            start = len(item.prompt_ids)
            values = []
            for place, noise in enumerate(item.log_probs):
                token = item.completion_ids[place]
                values.append(min(0.0, float(own[start + place - 1, token]) + 0.3 * noise))
            if len(values) > 3:
                values[1] = math.nan
            items.append(replace(item, log_probs=tuple(values)))
        groups.append(RolloutGroup(name=group.name, rollouts=tuple(items)))
    return RolloutSet(source=rollouts.source, groups=tuple(groups))


def trl_grpo(
    folder: Path,
    rollouts: RolloutSet,
    *,
    loss_type: str,
    scale: str,
    name: str = "",
    family: str = "qwen3",
    **options: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """TRL's trainer on given completions: generation and rewards are replaced, nothing else."""
    flat = [item for group in rollouts.groups for item in group.rollouts]
    level = "sequence" if loss_type == "gspo" else "token"
    trained = build(family)
    trained.config._name_or_path = name
    trainer = GRPOTrainer(
        model=trained,
        reward_funcs=lambda **_: [item.reward for item in flat],
        args=GRPOConfig(
            **arguments(
                folder,
                per_device_train_batch_size=len(flat),
                num_generations=len(REWARDS[0]),
                loss_type="grpo" if loss_type == "gspo" else loss_type,
                importance_sampling_level=level,
                scale_rewards=scale,
                max_completion_length=MOST_TOKENS,
                **options,
            )
        ),
        train_dataset=Dataset.from_list([{"prompt": f"prompt {n}"} for n in range(len(REWARDS))]),
        processing_class=byte_tokenizer(),
        rollout_func=lambda prompts, trainer: {  # noqa: ARG005
            "prompt_ids": [list(item.prompt_ids) for item in flat],
            "completion_ids": [list(item.completion_ids) for item in flat],
            "logprobs": None,
        },
    )
    rows = [{"prompt": f"prompt {n}"} for n in range(len(REWARDS)) for _ in REWARDS[0]]
    inputs = trainer._generate_and_score_completions(rows)
    if flat[0].log_probs:
        width = inputs["completion_ids"].shape[1]
        old = torch.zeros(len(flat), width)
        for row, item in enumerate(flat):
            old[row, : len(item.log_probs)] = torch.tensor(item.log_probs)
        with torch.no_grad():
            own, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                width,
            )
        inputs["old_per_token_logps"] = torch.where(torch.isnan(old), own, old)
    model: PreTrainedModel = trainer.model
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(model, inputs).backward()
    return model, inputs


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_grpo(tmp_path: Path, loss_type: str, scale: str) -> None:
    rollouts = drawn_rollouts()
    trained, _ = trl_grpo(tmp_path, rollouts, loss_type=loss_type, scale=scale)
    objective = grpo(loss_type, scale_rewards=scale)
    assert_equal(captured(build(), rollouts, objective, byte_tokenizer()), trained)


# TRL pads prompts on the left without telling positions: relative ones do not mind. The loss that
# balances experts is no part of an objective.
@pytest.mark.parametrize("family", RELATIVE)
def test_grpo_and_dpo_in_other_families(tmp_path: Path, family: str) -> None:
    rollouts = drawn_rollouts()
    balance = {} if family not in EXPERTS else {"router_aux_loss_coef": 0.0}
    trained, _ = trl_grpo(
        tmp_path, rollouts, loss_type="dapo", scale="group", family=family, **balance
    )
    objective = grpo("dapo")
    assert_equal(captured(build(family), rollouts, objective, byte_tokenizer()), trained)
    trained = first_gradient(dpo_trainer(tmp_path, PAIRS, byte_tokenizer(), family, **balance))
    examples = example_set(PAIRS, "rows", DataSettings(), ("preference",))
    objective = ObjectiveSettings(objective="dpo")
    assert_equal(captured(build(family), examples, objective, byte_tokenizer()), trained)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_grpo_with_another_policys_log_probabilities(tmp_path: Path, loss_type: str) -> None:
    temperature = 0.8
    rollouts = with_old_log_probs(drawn_rollouts(old=True), build(), temperature)
    options = {"temperature": temperature, "epsilon": 0.1, "epsilon_high": 0.25}
    trained, inputs = trl_grpo(tmp_path, rollouts, loss_type=loss_type, scale="group", **options)
    assert inputs["old_per_token_logps"].isfinite().all()
    found = captured(build(), rollouts, grpo(loss_type, **options), byte_tokenizer())
    assert_equal(found, trained)
    objective = grpo(loss_type, temperature=temperature)
    on_policy = captured(build(), drawn_rollouts(), objective, byte_tokenizer())
    assert any(not torch.allclose(found[name], on_policy[name], rtol=1e-2) for name in found)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_truncated_completions_can_be_masked(tmp_path: Path, loss_type: str) -> None:
    end = int(byte_tokenizer().eos_token_id)

    def ended(item: Rollout) -> Rollout:
        """The completion as it is, or ending in the end token where it is not truncated."""
        ids = (*item.completion_ids[:-1], end)
        return item if item.truncated else replace(item, completion_ids=ids)

    drawn = drawn_rollouts()
    groups = (replace(each, rollouts=tuple(map(ended, each.rollouts))) for each in drawn.groups)
    rollouts = replace(drawn, groups=tuple(groups))
    trained, _ = trl_grpo(
        tmp_path, rollouts, loss_type=loss_type, scale="group", mask_truncated_completions=True
    )
    objective = grpo(loss_type, mask_truncated=True)
    assert_equal(captured(build(), rollouts, objective, byte_tokenizer()), trained)


def test_the_kl_penalty_has_no_gradient_at_the_start(tmp_path: Path) -> None:
    plain, _ = trl_grpo(tmp_path, drawn_rollouts(), loss_type="dapo", scale="group")
    folder = tmp_path / "model"
    build().save_pretrained(folder)  # TRL loads the reference by its name
    tied, _ = trl_grpo(
        tmp_path, drawn_rollouts(), loss_type="dapo", scale="group", beta=0.5, name=str(folder)
    )
    for name, parameter in plain.named_parameters():
        other = tied.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("capture", [{"batch_size": 1}, {"batch_size": 16}])
def test_batches_change_nothing(capture: dict[str, Any]) -> None:
    pairs = example_set(PAIRS, "rows", DataSettings(), ("preference",))
    rollouts = with_old_log_probs(drawn_rollouts(old=True), build(), 1.0)
    for examples, objective in (
        (pairs, ObjectiveSettings(objective="dpo", loss_type="ipo")),
        (rollouts, grpo("gspo")),
    ):
        one = captured(build(), examples, objective, byte_tokenizer())
        two = captured(build(), examples, objective, byte_tokenizer(), **capture)
        for name, gradient in one.items():
            error = float((gradient - two[name]).norm() / gradient.norm())
            assert error < TOLERANCE, name
