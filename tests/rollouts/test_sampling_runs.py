"""Runs that sample: which prompts, who judges, what is stored and what is sampled again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from console import chat
from families import FAMILIES
from sampled import (
    BYTE_END,
    END,
    ROWS,
    everything,
    greedy,
    lengths,
    sample,
    settings,
    zeros,
)
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer

from hlscore.errors import CaptureError, DataError, RewardError
from hlscore.flow import Silent
from hlscore.probes.encode import encode
from hlscore.processes import Processes
from hlscore.rollouts.records import RolloutJournal

# Prompts


def test_prompts_that_cannot_be_continued() -> None:
    model, tokens = FAMILIES["llama"].build(), byte_tokenizer()
    context = model.config.max_position_embeddings
    long, copy = {"prompt": "l" * (context - 1)}, {"prompt": "copied"}
    rows = [{"prompt": "x" * context}, long, copy, {"prompt": ""}, copy, {"prompt": "y" * 999}]
    found = sample(model, tokens, rows, generate_batch=4)
    assert [(group.name, group.rollouts[0].prompt) for group in found.groups] == [
        ("1", long["prompt"]), ("2", "copied"),
    ]  # fmt: skip
    assert {len(item.completion_ids) for item in found.groups[0].rollouts} == {1}
    assert max(len(item.completion_ids) for item in found.groups[1].rollouts) == 12
    assert list(found.notes) == [
        f"2 prompts were left out: they fill the context of {context} tokens.",
        "1 prompts were left out: they are empty.",
        "1 prompts were left out: they are copies of others.",
    ]
    with pytest.raises(DataError, match="each fills the context of 256 tokens"):
        sample(model, tokens, rows[:1])
    with pytest.raises(DataError, match="all are empty"):
        sample(model, tokens, [rows[3]])


def test_room_does_not_depend_on_the_neighbours() -> None:
    """A long prompt in the same batch takes no room from a short one."""
    model, tokens = FAMILIES["llama"].build(), byte_tokenizer()
    rows = [{"prompt": "l" * 250}, {"prompt": "short"}]
    found = sample(model, tokens, rows, top_k=1)
    for item, room in zip((group.rollouts[0] for group in found.groups), (6, 12), strict=True):
        assert item.completion_ids == greedy(model, item.prompt_ids, room, [BYTE_END])


# Judges


def test_rewards_get_what_trl_gives_them(tiny: Any) -> None:
    calls: list[dict[str, Any]] = []

    def judge(**given: Any) -> list[float | None]:
        calls.append(given)
        return [float(len(ids)) for ids in given["completion_ids"]]

    rows = [row | {"level": number} for number, row in enumerate(ROWS)]
    found = everything(sample(*tiny, rows, judge=judge, generate_batch=8))
    assert [len(call["prompts"]) for call in calls] == [8, 8, 4]
    extra = {"trainer_state", "log_extra", "log_metric"}
    assert {*calls[0]} - extra == {*("prompts", "completions", "completion_ids"), *rows[0]} - {
        "prompt", "completion",
    }  # fmt: skip
    merged = {
        name: [value for call in calls for value in call[name]] for name in calls[0].keys() - extra
    }
    assert [item.reward for item in found] == [len(item.completion_ids) for item in found]
    assert merged.pop("completions") == [item.completion for item in found]
    assert merged.pop("completion_ids") == [list(item.completion_ids) for item in found]
    for name, values in merged.items():
        assert values == [row[name.removesuffix("s")] for row in rows for _ in range(4)]
    # Conversations are judged as messages.
    calls.clear()
    model, tokens = FAMILIES["llama"].build(), byte_tokenizer()
    tokens.chat_template = CHAT_TEMPLATE_WITH_GENERATION
    rows = [{"prompt": chat("hi")}, {"prompt": chat("one", "two", "three")}]
    found = everything(sample(model, tokens, rows, judge=judge))
    assert found[0].prompt_ids == (260, *b"hi", 262, 261)
    assert [item.prompt for item in found] == [rows[i // 4]["prompt"] for i in range(8)]
    assert calls[0]["prompts"][:1] == [chat("hi")]
    for given, item in zip(calls[0]["completions"], found, strict=True):
        text = tokens.decode(item.completion_ids, skip_special_tokens=True)
        assert given == item.completion == [{"role": "assistant", "content": text}]


def test_the_summary_counts(tiny: Any) -> None:
    def judge(completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if place % 7 == 6 else float(place % 3) for place in range(len(completions))]

    found = sample(*tiny, judge=judge, generate_batch=64)
    summary = encode(
        found, tiny[1], tiny[0], objective=settings(), max_length=None, groups=2, seed=0
    ).summary
    counts, every = summary.rollouts, everything(found)
    assert counts is not None
    known = [item.reward for item in every if item.reward is not None]
    assert (counts.prompts, counts.completions, counts.unjudged) == (5, 20, 2)
    assert counts.mean_reward == pytest.approx(sum(known) / len(known))
    assert (counts.truncated, counts.silent) == (sum(item.truncated for item in every), 0)
    assert any("2 completions could not be judged" in note for note in summary.notes)


# Journals


class StoppedError(Exception):
    """Raised in the middle of a run."""


class Stop(Silent):
    """Ends a run after some batches."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def advance(self, _: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise StoppedError


@pytest.mark.parametrize("batch", [8, 3])
def test_what_is_stored_is_not_sampled_again(tiny: Any, tmp_path: Path, batch: int) -> None:
    """Also where one prompt takes several batches of the model."""
    calls: list[str] = []

    def judge(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        calls.extend(prompts)
        return lengths(completions)

    run = partial(sample, *tiny, judge=judge, generate_batch=batch)
    expected = run()
    counted = len(calls)
    calls.clear()
    journal = RolloutJournal(tmp_path, {"run": 1}, Processes())
    with pytest.raises(StoppedError):
        run(journal=journal, progress=Stop(1))
    stored = journal.load()
    assert len(stored) == (4 if batch == 8 else 2)
    assert run(journal=journal, resume=True) == expected
    assert len(calls) == counted
    assert list(dict.fromkeys(calls)) == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("left", range(0, 2400, 300))
def test_a_journal_cut_anywhere_goes_on(tiny: Any, tmp_path: Path, left: int) -> None:
    run = partial(sample, *tiny, ROWS[:3], judge=lengths, generate_batch=8, max_new_tokens=4)
    journal = RolloutJournal(tmp_path, {"run": 1}, Processes())
    expected = run(journal=journal)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: min(left, len(whole))])
    assert run(journal=journal, resume=True) == expected
    assert list(journal.load().values()) == list(expected.groups)


def test_batches_that_do_not_fit_are_halved(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    model, real, most = tiny[0], tiny[0].generate, 5

    def limited(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError
        return real(**given)

    monkeypatch.setattr(model, "generate", limited)
    found = sample(*tiny, top_k=1)
    assert sizes[:3] == [20, 10, 5]
    assert max(sizes[3:]) <= 5
    for item in everything(found):
        assert item.completion_ids == greedy(model, item.prompt_ids, 12, [END])
    most = 0
    with pytest.raises(CaptureError, match="a single completion"):
        sample(*tiny)


class _Alone(Processes):
    """One process of several that hears nothing of the others."""

    def gather(self, item: Any) -> list[Any]:
        return [item]


def test_what_another_process_finds_wrong_in_the_data_is_said(tiny: Any) -> None:
    """Of data errors only the main process tells, and it may never meet this one."""
    rows = [{"prompt": f"{n} + 1 =", "answer": answer} for n, answer in enumerate("ab(")]
    with pytest.raises(RewardError, match=r"The answer '\(' is not a regular expression"):
        sample(
            *tiny, rows, judge=["regex", zeros], generate_batch=8,
            processes=_Alone(rank=1, size=2),
        )  # fmt: skip
