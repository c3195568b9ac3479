"""Completions that the model samples: how they are drawn, end, are judged and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import footprint
from console import chat
from families import FAMILIES
from scipy.stats import chisquare
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import hlscore
from hlscore.errors import CaptureError, RewardError
from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_rows
from hlscore.inputs.formats import example_set
from hlscore.processes import Processes
from hlscore.rollouts.records import Rollout, RolloutJournal, RolloutSet
from hlscore.rollouts.rewards import RewardProcess
from hlscore.rollouts.sampling import sample_completions
from hlscore.settings import DataSettings, ObjectiveSettings
from hlscore.steps import Silent

ROWS = builtin_rows(BUILTIN_KNOWN)[:5]
END = 0  # of the built-in model
BYTE_END = 258  # of the byte tokenizer

Judge = Callable[..., list[float | None]]


def zeros(completions: Sequence[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def lengths(completions: Sequence[Any], **_: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


def settings(**options: Any) -> ObjectiveSettings:
    chosen = {"generations": 4, "max_new_tokens": 12, "rewards": ("math",)} | options
    return ObjectiveSettings(objective="grpo", **chosen)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any] = ROWS,
    *,
    judge: Judge | list[Any] = zeros,
    seed: int = 0,
    journal: RolloutJournal | None = None,
    progress: Silent | None = None,
    processes: Processes = Processes(),
    **options: Any,
) -> RolloutSet:
    examples = example_set(rows, "rows", DataSettings(), ("prompt",))
    rewards = RewardProcess(judge if isinstance(judge, list) else [judge])
    return sample_completions(
        model, tokenizer, examples, settings(**options), rewards,
        progress or Silent(), seed=seed, processes=processes, journal=journal,
    )  # fmt: skip


def everything(found: RolloutSet) -> list[Rollout]:
    return [item for group in found.groups for item in group.rollouts]


def drawn(found: RolloutSet) -> list[tuple[int, ...]]:
    return [item.completion_ids for item in everything(found)]


def greedy(
    model: PreTrainedModel, prompt: Sequence[int], count: int, ends: Sequence[int]
) -> tuple[int, ...]:
    """The slow way: no cache, no padding, one sequence."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return tuple(ids[len(prompt) :])


# Draws


def test_the_seed_decides_and_the_draws_of_others_are_left_alone(tiny: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    one = sample(*tiny)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(6)
    assert sample(*tiny) == one
    assert drawn(one) != drawn(sample(*tiny, seed=1))
    assert len(set(drawn(one))) > len(one.groups)  # completions of a prompt differ
    assert [group.name for group in one.groups] == ["0", "1", "2", "3", "4"]
    assert {len(group.rollouts) for group in one.groups} == {4}


@pytest.mark.parametrize("settled", [{"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_greedy_limits_draw_what_a_plain_loop_does(tiny: Any, settled: dict[str, Any]) -> None:
    found = sample(*tiny, **settled, generations=2, max_new_tokens=40, temperature=0.7)
    for item in everything(found):
        assert item.completion_ids == greedy(tiny[0], item.prompt_ids, 40, [END])
    assert any(item.completion_ids[-1] == END for item in everything(found))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_padding_changes_no_family(name: str) -> None:
    """Prompts of differing length in one batch go on as each of them does alone."""
    if name == "llava":
        pytest.skip("its prompts are texts, its decoder is Llama's")
    model, tokens = FAMILIES[name].build().float().eval(), byte_tokenizer()
    rows = [{"prompt": "?"}, {"prompt": "2 + 3 ="}, {"prompt": "name a colour, or two: "}]
    found = sample(model, tokens, rows, top_k=1, generations=2, max_new_tokens=6)
    for item in everything(found):
        assert item.completion_ids == greedy(model, item.prompt_ids, 6, [BYTE_END])


def _expected(model: PreTrainedModel, ids: Sequence[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


def _fit(counts: torch.Tensor, shares: torch.Tensor) -> float:
    """The p-value of a chi-square test, rare tokens taken together."""
    expected = shares / shares.sum() * counts.sum()
    common = expected >= 5
    if (~common).any():
        counts = torch.cat([counts[common], counts[~common].sum()[None]])
        expected = torch.cat([expected[common], expected[~common].sum()[None]])
    kept = expected > 0
    assert not counts[~kept].any(), "something was drawn that has no probability"
    return float(chisquare(counts[kept].numpy(), expected[kept].numpy()).pvalue)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"temperature": 1.0}, {"temperature": 2.0},
     {"temperature": 1.5, "top_k": 3}, {"temperature": 1.5, "top_p": 0.5}],
    ids=str,
)  # fmt: skip
def test_tokens_are_drawn_with_their_probabilities(tiny: Any, options: dict[str, Any]) -> None:
    """Those of the softmax, or of its most probable tokens; another temperature does not fit."""
    model, tokenizer = tiny
    found = sample(
        *tiny, [{"prompt": "Please "}], generations=4000, max_new_tokens=1, generate_batch=500,
        **options,
    )  # fmt: skip
    counts = torch.tensor([item.completion_ids[0] for item in everything(found)])
    counts = counts.bincount(minlength=768).double()
    ids, temperature = tokenizer("Please ")["input_ids"], options["temperature"]
    shares = _expected(model, ids, temperature)
    if len(options) == 1:
        assert _fit(counts, _expected(model, ids, temperature * 1.2)) < 1e-6
    else:
        ordered = shares.argsort(descending=True)
        before = shares[ordered].cumsum(0) - shares[ordered]
        kept = options.get("top_k") or int((before < options["top_p"]).sum())
        assert 1 < kept < 300
        shares[ordered[kept:]] = 0.0
    assert _fit(counts, shares) > 1e-3


# Ends


def test_ends(tiny: Any) -> None:
    long = sample(*tiny, max_new_tokens=24)
    for item in everything(long):
        assert END not in item.completion_ids[:-1]
        assert item.truncated == (item.completion_ids[-1] != END)
        assert len(item.completion_ids) == 24 if item.truncated else item.completion_ids
        text = tiny[1].decode(item.completion_ids, skip_special_tokens=True)
        assert item.completion == text
    assert {item.truncated for item in everything(long)} == {True, False}
    # A lower limit gives the beginnings.
    short = sample(*tiny, max_new_tokens=5)
    assert [ids[:5] for ids in drawn(long)] == drawn(short)
    assert all(item.truncated == (END not in item.completion_ids) for item in everything(short))


@pytest.mark.parametrize("stop", [("####",), ("=", "1"), ("\n#",), ("er: ",)], ids=str)
def test_stop_texts_end_a_completion(tiny: Any, stop: tuple[str, ...]) -> None:
    """The beginning of what is drawn without them that first holds one of them."""
    free = sample(*tiny, max_new_tokens=30)
    found = sample(*tiny, max_new_tokens=30, stop=stop)
    stopped = 0
    for long, short in zip(everything(free), everything(found), strict=True):
        ends = [
            length
            for length in range(1, len(long.completion_ids) + 1)
            if any(text in tiny[1].decode(long.completion_ids[:length]) for text in stop)
        ]
        expected = long.completion_ids[: ends[0]] if ends else long.completion_ids
        assert short.completion_ids == expected
        assert short.truncated == (long.truncated and not ends)
        stopped += bool(ends)
    assert stopped > 2


def test_every_end_token_of_the_checkpoint_ends(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = sample(*tiny)
    other = max({ids[2] for ids in drawn(free)} - {END})
    suggested = GenerationConfig(eos_token_id=[END, other], pad_token_id=1)
    monkeypatch.setattr(tiny[0], "generation_config", suggested)
    found = sample(*tiny)
    for long, short in zip(drawn(free), drawn(found), strict=True):
        ends = [place for place, token in enumerate(long) if token == other]
        assert short == (long[: ends[0] + 1] if ends else long)
    assert any(
        item.completion_ids[-1] == other and not item.truncated for item in everything(found)
    )


# Checkpoints


@pytest.mark.parametrize(
    "suggested",
    [
        {"do_sample": True, "top_k": 1},
        {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
        {"forced_bos_token_id": 9, "forced_eos_token_id": 9},
        {"suppress_tokens": list(range(2, 700)), "begin_suppress_tokens": [5]},
        {"num_beams": 3, "do_sample": False},
        {"min_new_tokens": 12, "max_length": 3, "max_new_tokens": 2},
    ],
    ids="+".join,
)
def test_suggestions_of_a_checkpoint_do_not_leak(
    tiny: Any, suggested: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(*tiny, ROWS[:3])
    config = GenerationConfig(eos_token_id=END, **suggested)
    monkeypatch.setattr(tiny[0], "generation_config", config)
    assert sample(*tiny, ROWS[:3]) == expected


def fails(**_: Any) -> list[float | None]:
    raise ValueError("no")


@pytest.mark.parametrize("judge", [zeros, fails])
def test_the_model_comes_back_untouched(judge: Judge) -> None:
    model = FAMILIES["llama"].build()
    own = model.generation_config
    wanted = own.to_dict()
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[1].register_forward_hook(lambda *_: None)
    before = footprint(model)
    run = partial(sample, model, byte_tokenizer(), [{"prompt": "x"}], judge=judge)
    if judge is fails:
        with pytest.raises(RewardError, match="ValueError: no"):
            run()
    else:
        assert len(everything(run())) == 4
    assert footprint(model) == before
    assert model.generation_config is own
    assert own.to_dict() == wanted


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
        f"2 prompts left out: no room in the context of {context} tokens.",
        "1 prompt left out: empty.",
        "1 prompt left out: copies of others.",
    ]


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
    assert run(journal=journal) == expected
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
    assert run(journal=journal) == expected
    assert list(journal.load().values()) == list(expected.groups)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_batches_that_do_not_fit_are_halved(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    sizes: list[int] = []
    model, real, most = tiny[0], tiny[0].generate, 5

    def limited(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > most:
            raise error
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


# Families

TEXTS = [{"prompt": text} for text in ("one", "two or three", "x =", "the end of", "a b c")]


def even(completion_ids: list[list[int]], **_: object) -> list[float]:
    """A reward that a random model meets about half of the time."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


# One of each kind: dense, Conv1D, fused projections, images beside text, experts, state space.
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "llava", "gpt_oss", "qwen3_next"])
def test_family(name: str) -> None:
    model = FAMILIES[name].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options: dict[str, object] = {"objective": "grpo", "rank": 2, "budget": 0.5}
    found = hlscore.rank(
        model, byte_tokenizer(), data=TEXTS, reward=even, max_new_tokens=6, generations=4,
        generate_batch=8, **options,
    )  # fmt: skip
    assert found.rollouts is not None
    assert found.report.probes.rollouts is not None
    assert found.report.probes.rollouts.completions == 20
    lengths = {len(item.completion_ids) for g in found.rollouts.groups for item in g.rollouts}
    assert 1 <= min(lengths) <= max(lengths) <= 6
    assert any(row.grad_energy for row in found.rows if row.status == "scored")
    again = hlscore.rank(model, byte_tokenizer(), rollouts=found.rollouts, **options)
    assert {row.module: row.hls for row in again.rows} == {
        row.module: row.hls for row in found.rows
    }
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
