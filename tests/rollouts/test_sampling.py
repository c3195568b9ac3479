"""Completions that the model samples itself: how they are drawn, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from conftest import footprint
from families import FAMILIES
from sampled import (
    BYTE_END,
    END,
    ROWS,
    Judge,
    drawn,
    everything,
    greedy,
    sample,
    zeros,
)
from scipy.stats import chisquare
from tokens import byte_tokenizer
from transformers import GenerationConfig, PreTrainedModel

from hlscore.errors import RewardError

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


def test_every_end_token_of_the_checkpoint_ends(tiny: Any) -> None:
    model, tokenizer = tiny
    free = sample(*tiny)
    other = max({ids[2] for ids in drawn(free)} - {END})
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=[END, other], pad_token_id=1)
    try:
        found = sample(model, tokenizer)
    finally:
        model.generation_config = own
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
def test_suggestions_of_a_checkpoint_do_not_leak(tiny: Any, suggested: dict[str, Any]) -> None:
    model, tokenizer = tiny
    expected = sample(*tiny, ROWS[:3])
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=END, **suggested)
    try:
        assert sample(model, tokenizer, ROWS[:3]) == expected
    finally:
        model.generation_config = own


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
