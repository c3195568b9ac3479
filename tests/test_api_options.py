"""The Python API takes every option of a run that the command line takes."""

from __future__ import annotations

import inspect

import pytest
from families import FAMILIES
from tokens import byte_tokenizer

import hlscore
from hlscore.errors import UsageError
from hlscore.settings import CaptureSettings, ModelSettings, RankSettings, settings_in

ROWS = [{"text": f"number {number} of some"} for number in range(8)]


def test_keywords_are_the_options_of_the_command_line() -> None:
    # Files, and how a model is loaded, are for the command line; so is a plan to compare with.
    taken = {
        setting.option.name or name.replace("_", "-")
        for name, setting in settings_in(RankSettings).items()
        if setting.option and name not in settings_in(ModelSettings) and name != "baseline"
    } - {"update"}
    keywords = inspect.signature(hlscore.rank).parameters
    own = {"data", "reward", "rollouts", "progress", "model", "tokenizer", "options"}
    named = {
        settings_in(RankSettings)[name].flag.removeprefix("--")
        for name in keywords
        if name not in own
    }
    assert taken - own == named
    assert all(f"    {name}: " in str(hlscore.rank.__doc__) for name in keywords if name not in own)


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match=r"argument 'sketchsize'\. Did you mean 'sketch_size'\?"):
        hlscore.rank(FAMILIES["llama"].build(), byte_tokenizer(), sketchsize=64)


def test_settings_reach_the_run() -> None:
    found = hlscore.rank(
        FAMILIES["llama"].build(), byte_tokenizer(), data=ROWS, rank=2, ranks=(1, 2, 4),
        value_power=0.5, groups=2, bootstrap=6, svd="full",
    )  # fmt: skip
    assert found.plan.settings.value_power == 0.5
    assert {len(row.hls_replicates) for row in found.report.candidates} == {6}
    assert found.report.probes.groups == 4
    assert found.report.run.settings["capture"]["svd"] == "full"  # type: ignore[index]


def test_one_resample_is_refused() -> None:
    with pytest.raises(UsageError, match="--bootstrap is 1"):
        CaptureSettings(bootstrap=1)


def test_rank_that_trains_more_than_the_modules_hold_is_said_aloud() -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    found = hlscore.rank(model, tokenizer, data=ROWS, rank=512, bootstrap=0)
    lora = [item for item in found.plan.modules if item.mode == "lora"]
    assert lora
    trained = sum(512 * (item.out_features + item.in_features) for item in lora)
    (note,) = [note for note in found.plan.notes if "smaller --rank" in note]
    assert f"LoRA trains {trained:,} parameters in {len(lora)} of" in note
    assert f"whose weights are {sum(item.params for item in lora):,}" in note
    small = hlscore.rank(model, tokenizer, data=ROWS, rank=4, bootstrap=0)
    assert not [note for note in small.plan.notes if "smaller --rank" in note]
