"""The completions that TRL's trainer logs are read as rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from families import FAMILIES
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_runs import arguments

import hlscore

TEXTS = ("one", "two or three", "x =", "the end of")


def vowels(completions: list[Any], **_: object) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(text.count(v) for v in "aeiou") + len(text) % 3) for text in texts]


@pytest.mark.parametrize("chat", [False, True])
def test_a_logged_step_is_probed(tmp_path: Path, chat: bool) -> None:
    tokens = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION if chat else None)
    prompts = [[{"role": "user", "content": t}] if chat else t for t in TEXTS]
    trainer = GRPOTrainer(
        model=FAMILIES["qwen3"].build().float(),
        reward_funcs=vowels,
        args=GRPOConfig(
            **arguments(tmp_path, per_device_train_batch_size=16), num_generations=4, max_steps=1,
            max_completion_length=6, logging_steps=1, log_completions=True, save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokens,
    )  # fmt: skip
    trainer.train()
    found = hlscore.rank(
        FAMILIES["qwen3"].build(), tokens, objective="grpo", rollouts=tmp_path / "completions",
        columns={"reward": "vowels"}, rank=2,
    )  # fmt: skip
    drawn = found.report.probes.rollouts
    assert drawn is not None
    assert (drawn.prompts, drawn.completions) == (4, 16)
    assert drawn.mean_reward == pytest.approx(trainer.state.log_history[0]["reward"], rel=1e-5)
    assert any(row.grad_energy for row in found.rows)
