"""Edges of rewards, weights and journals, each found by trying to break it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from tokens import byte_tokenizer
from transformers import PreTrainedModel

import hlscore
from hlscore.errors import DataError, HlscoreError
from hlscore.inputs.formats import ExampleSet
from hlscore.objectives.policy import clipped_loss
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample, ProbeUnit, make_probe_set
from hlscore.records import ProbeSummary
from hlscore.rollouts.reading import rollouts_from
from hlscore.rollouts.reward_worker import Completions
from hlscore.rollouts.rewards import RewardProcess
from hlscore.settings import ModelSettings, ObjectiveSettings, RankSettings

PROMPTS = [{"prompt": f"prompt {n}", "answer": str(n)} for n in range(6)]


@pytest.fixture
def model() -> PreTrainedModel:
    return FAMILIES["llama"].build()


def row(prompt: int, completion: list[int], reward: float, **more: Any) -> dict[str, Any]:
    ids = [10 + prompt, 20]
    return {"prompt_ids": ids, "completion_ids": completion, "reward": reward, **more}


def probed(model: PreTrainedModel, rows: list[dict[str, Any]], **options: Any) -> Any:
    examples = ExampleSet(source="rows", format="rollouts", rows=tuple(rows))
    rollouts = rollouts_from(examples, byte_tokenizer(), model, samples=0, seed=0)
    objective = ObjectiveSettings(objective="grpo", rollouts="rows", **options)
    return encode(
        rollouts, byte_tokenizer(), model, objective=objective, max_length=None, groups=4, seed=0
    )


def ranked(model: PreTrainedModel, **options: Any) -> hlscore.RankResult:
    return hlscore.rank(model, byte_tokenizer(), objective="grpo", rank=2, **options)


def test_groups_that_count_nothing_join_others() -> None:
    def unit(number: int, count: int) -> ProbeUnit:
        own = (ProbeExample((number, 1), (False, True)),) if count else ()
        return ProbeUnit(own, count, key=str(number))

    summary = ProbeSummary(source="", format="", examples=40, truncated=0, dropped=0)
    for seed in range(20):
        units = [unit(n, 5 if n % 8 == 0 else 0) for n in range(40)]
        found = make_probe_set(units, summary=summary, pad_token_id=0, groups=8, seed=seed)
        assert sum(map(sum, found.counts)) == 25
        for half in found.counts:
            assert all(half) or len(half) == 1


def test_masked_completions_leave_errors_finite(model: PreTrainedModel) -> None:
    rows = [
        row(n, [30 + k, 40 + n], float(k == 1), truncated=n % 8 != 0)
        for n in range(48)
        for k in range(3)
    ]
    found = ranked(model, rollouts=rows, mask_truncated=True)
    for item in found.rows:
        assert item.hls_stderr is None or math.isfinite(item.hls_stderr)
    drawn = found.report.probes.rollouts
    assert drawn is not None
    assert (drawn.silent, drawn.carrying) == (0, 6)


@pytest.mark.parametrize(
    ("step", "rewards"),
    [(0, (0.0, 0.1, 0.7, 0.3, 0.9)), (0, (0.0, 0.0, 1.0)), (1, (0.0, 1e-50))],
    ids=["equal completions", "one reward", "rewards that hardly differ"],
)
def test_advantages_that_cancel_or_vanish(
    model: PreTrainedModel, step: int, rewards: tuple[float, ...]
) -> None:
    rows = [row(n, [50 + step * k], r) for n in range(8) for k, r in enumerate(rewards)]
    with pytest.raises(DataError, match="cancel out"):
        probed(model, rows)


def test_equal_texts_whose_prompts_end_elsewhere_stay_apart(model: PreTrainedModel) -> None:
    rows = []
    for n in range(4):
        rows += [
            {"group": n, "prompt_ids": [n, 6, 20], "completion_ids": [7, 8], "reward": 1.0},
            {"group": n, "prompt_ids": [n, 6], "completion_ids": [20, 7, 8], "reward": 0.4},
            {"group": n, "prompt_ids": [n, 6], "completion_ids": [9], "reward": 0.0},
        ]
    found = probed(model, rows)
    for n in range(4):
        own = [item for item in found.sequences if item.input_ids == (n, 6, 20, 7, 8)]
        assert {item.counted_tokens for item in own} == {2, 3}


def test_halves_do_not_depend_on_the_loss(model: PreTrainedModel) -> None:
    rows = [row(n, [30 + k] * (k + 1), float(k == n % 3)) for n in range(20) for k in range(3)]

    def first_half(**options: Any) -> set[tuple[int, ...]]:
        halves = probed(model, rows, **options).halves
        return {item.input_ids for group in halves[0] for item in group}

    expected = first_half()
    assert first_half(loss_type="grpo") == expected
    assert first_half(loss_type="dr_grpo", scale_rewards="none") == expected
    hashes = {
        probed(model, rows, loss_type=name).summary.hash for name in ("dapo", "grpo", "dr_grpo")
    }
    assert len(hashes) == 3


def test_absurd_ratios_have_finite_gradients() -> None:
    log_probs = torch.full((2, 3), -0.5, requires_grad=True)
    old = torch.full((2, 3), -2000.0)
    loss = clipped_loss(
        log_probs, torch.tensor([1.0, -1.0]), torch.ones(2, 3, dtype=torch.bool), old,
        low=0.2, high=0.2, by_sequence=False,
    )  # fmt: skip
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


def test_the_temperature_of_rollouts_comes_with_them(model: PreTrainedModel) -> None:
    hot = [row(n, [30 + k], float(k), temperature=0.5) for n in range(4) for k in range(2)]
    assert probed(model, hot).temperature == 0.5
    assert probed(model, hot, temperature=0.7).temperature == 0.7
    mixed = [{**item, "temperature": 1.0 + n % 2} for n, item in enumerate(hot)]
    found = probed(model, mixed)
    assert found.temperature == 1.0
    assert any("differ in temperature" in note for note in found.summary.notes)


def test_functions_of_one_name_are_kept_apart(model: PreTrainedModel) -> None:
    calls: list[str] = []

    def exact(completions: list[str], **_: Any) -> list[float]:
        calls.append("own")
        return [float(len(text) % 2) for text in completions]

    rewards = [
        lambda completions, **_: calls.append("a") or [0.0] * len(completions),
        lambda completions, **_: calls.append("b") or [0.0] * len(completions),
        exact,
        "exact",
    ]
    found = ranked(model, data=PROMPTS, max_new_tokens=8, reward=rewards)
    assert calls[:3] == ["a", "b", "own"]
    names = found.report.run.settings["objective"]["rewards"]  # type: ignore[index]
    assert len(set(names)) == 4
    assert "exact" in names
    again = ranked(model, rollouts=found.rollouts)
    assert [item.hls for item in again.rows] == [item.hls for item in found.rows]


def test_rows_in_memory_may_lack_columns(model: PreTrainedModel) -> None:
    def seen(answer: list[str | None], **_: Any) -> list[float]:
        assert None in answer
        return [float(n % 2) for n in range(len(answer))]

    rows = [*PROMPTS, {"prompt": "no answer here"}]
    ranked(model, data=rows, reward=seen, max_new_tokens=4)


def test_broken_weights_are_named_while_sampling(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.lm_head.weight[:] = math.nan
    with pytest.raises(HlscoreError, match="NaN or infinity instead of probabilities"):
        hlscore.rank(model, byte_tokenizer(), data=PROMPTS, objective="grpo", reward="exact")


def test_what_does_not_change_completions_does_not_lock_them() -> None:
    def about(**options: Any) -> dict[str, object]:
        changes = {
            name: options.pop(name) for name in ("reward_timeout", "top_p") if name in options
        }
        objective = ObjectiveSettings(objective="grpo", rewards=("math",), **changes)
        return RankSettings(
            model=ModelSettings(model="m"), objective=objective, **options
        ).sampling()

    assert about(reward_timeout=5.0) == about()
    assert about(top_p=0.5) != about()
    assert about(seed=1) != about()


def test_nothing_beside_the_data_replaces_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("math_verify", "random", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')\n")
    monkeypatch.chdir(tmp_path)
    batch = Completions(
        prompts=["p"], completions=["#### 4"], completion_ids=[[1]], columns={"answer": ["4"]}
    )
    for name in ("math", "numeric"):  # with a limit that is none in practice
        with RewardProcess([name], timeout=1e9) as judge:
            assert judge.judge(batch) == [1.0]


def test_answers_that_no_verifier_can_judge_are_not_sampled_for(model: PreTrainedModel) -> None:
    rows = [*PROMPTS, {"prompt": "who?", "answer": "Ada"}, {"prompt": "what?", "answer": None}]
    options = {"reward": "numeric", "max_new_tokens": 4, "generations": 2}
    with pytest.raises(DataError) as none:
        ranked(model, data=rows[-2:], **options)
    assert "No prompt of" in str(none.value)
    with pytest.raises(DataError) as silent:
        ranked(model, data=rows, **options)
    assert f"each of the {len(PROMPTS)} groups" in str(silent.value)


def test_steps_of_a_log_are_kept_apart(model: PreTrainedModel) -> None:
    rows = [row(n, [30 + k], float(k), step=step) for n in range(3) for k in range(2)
            for step in range(2)]  # fmt: skip
    drawn = probed(model, rows).summary.rollouts
    assert (drawn.prompts, drawn.completions) == (6, 12)


def test_ratios_of_another_policy_are_told(model: PreTrainedModel) -> None:
    rows = [row(n, [30 + k], float(k), logprobs=[-0.3]) for n in range(4) for k in range(2)]
    found = ranked(model, rollouts=rows)
    (note,) = (text for text in found.report.run.notes if "log-probabilities" in text)
    assert note.startswith("100 % of the 8 tokens")
    assert any("Only 4 prompts with a gradient" in text for text in found.report.probes.notes)
