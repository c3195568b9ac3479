"""The Python API on a model that the caller holds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from conftest import footprint
from families import FAMILIES
from tokens import byte_tokenizer

import hlscore
from hlscore.artifacts.report import to_table
from hlscore.errors import BudgetError, CaptureError, DataError, HlscoreError, UsageError
from hlscore.settings import CaptureSettings, ModelSettings, RankSettings, settings_in

ROWS = [{"prompt": f"{i} + {i + 1} =", "completion": f" {2 * i + 1}"} for i in range(12)]


def test_rank_gives_records_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = FAMILIES["llama"].build().train()
    before = footprint(model)
    result = hlscore.rank(model, byte_tokenizer(), data=ROWS, budget=0.3, rank=4)
    assert footprint(model) == before
    assert len(result.full_modules) == 4
    assert result.rows[0].module == result.full_modules[0]
    assert result.plan.totals.full_modules == 4
    assert len(result.to_pandas()) == len(result.rows)
    paths = result.save(tmp_path / "out")
    assert pq.read_table(paths["scores.parquet"]).equals(to_table(result.report))
    again = hlscore.RankResult(report=result.report, plan=result.plan)
    again.save(tmp_path / "out", force=True)


def test_data_may_be_a_dataset_a_path_or_nothing(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    expected = hlscore.rank(model, tokenizer, data=ROWS, rank=4).rows
    table = datasets.Dataset.from_list(ROWS)
    assert hlscore.rank(model, tokenizer, data=table, rank=4).rows == expected
    table.to_parquet(str(tmp_path / "rows.parquet"))
    assert hlscore.rank(model, tokenizer, data=tmp_path / "rows.parquet", rank=4).rows == expected
    builtin = hlscore.rank(model, tokenizer, samples=8, rank=4)
    assert builtin.report.probes.source == "builtin:new"
    # Rows in memory are drawn as from a file, also inside the inference mode of a caller.
    table.to_json(str(tmp_path / "rows.jsonl"))
    with torch.inference_mode():
        drawn = [
            hlscore.rank(model, tokenizer, data=data, samples=6, seed=3, rank=4)
            for data in (ROWS, tmp_path / "rows.jsonl")
        ]
        assert hlscore.rank(model, tokenizer, data=ROWS, rank=4).rows == expected
    assert drawn[0].report.probes.hash == drawn[1].report.probes.hash


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": 2}, BudgetError, "."),
        ({"rank": 16.0}, UsageError, "--rank is 16"),
        ({"samples": 16.5}, UsageError, "--samples is 16.5"),
        ({"ranks": "4,8"}, UsageError, "ranks holds '4,8'"),
        ({"ranks": 4.0}, UsageError, "ranks holds 4.0"),
        ({"ranks": [4, "8"]}, UsageError, "ranks holds '8'"),
        ({"include": [5]}, UsageError, "--include holds 5"),
        ({"columns": ["prompt=a"]}, UsageError, "columns is no mapping"),
        ({"weight_scores": "yes"}, UsageError, "--weight-scores is 'yes'"),
        ({"data": 42}, DataError, "list of mappings"),
        ({"data": [{"question": "?"}, {"question": "!"}]}, DataError, "."),
        ({"data": []}, DataError, "."),
        ({"data": ["text", "more"]}, DataError, "list of mappings"),
        ({"data": [1, 2]}, DataError, "list of mappings"),
        ({"data": {"train": ROWS}}, DataError, "list of mappings"),
        ({"sketchsize": 64}, TypeError, r"argument 'sketchsize'\. Did you mean 'sketch_size'\?"),
        ({"rewards": "math"}, TypeError, r"argument 'rewards'\. Did you mean 'reward'\?"),
        ({"model": None}, UsageError, "model is of type NoneType"),
        ({"model": "gpt2"}, UsageError, "model is of type str"),
        ({"tokenizer": None}, UsageError, "No tokenizer is given"),
        ({"objective": "grpo", "reward": 5}, UsageError, "A reward is of type int"),
        ({"objective": "grpo", "rollouts": ROWS}, UsageError, "data and rollouts are mutually"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"model": FAMILIES["llama"].build(), "tokenizer": byte_tokenizer(), "data": ROWS}
    with pytest.raises(error, match=words):
        hlscore.rank(**given | options)


def test_optimizer_in_the_backward_pass_is_refused() -> None:
    model = FAMILIES["llama"].build()
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    with pytest.raises(CaptureError, match="hook of its own"):
        hlscore.rank(model, byte_tokenizer(), data=ROWS)
    assert torch.equal(weight, before)


def test_model_without_values_is_refused() -> None:
    family = FAMILIES["llama"]
    with torch.device("meta"):
        model = family.auto_class.from_config(family.config())
    with pytest.raises(HlscoreError, match="meta device"):
        hlscore.rank(model, byte_tokenizer(), data=ROWS)


# Options


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


def test_settings_reach_the_run() -> None:
    found = hlscore.rank(
        FAMILIES["llama"].build(), byte_tokenizer(), data=ROWS, rank=2, ranks=(1, 2, 4),
        value_power=0.5, groups=2, bootstrap=6, svd="full", include="*.mlp.*", budget=0.5,
    )  # fmt: skip
    assert {row.block for row in found.report.candidates} == {"mlp"}  # one glob needs no list
    assert found.plan.settings.value_power == 0.5
    assert {len(row.hls_replicates) for row in found.report.candidates} == {6}
    assert found.report.probes.groups == 4
    assert found.report.run.settings["capture"]["svd"] == "full"  # type: ignore[index]
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
