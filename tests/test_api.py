"""The Python API on a model that the caller holds."""

from __future__ import annotations

import subprocess
import sys
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
from hlscore.errors import BudgetError, CaptureError, DataError, HlscoreError
from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings

ROWS = [{"prompt": f"{i} + {i + 1} =", "completion": f" {2 * i + 1}"} for i in range(12)]


def test_rank_gives_records_and_leaves_the_model_alone() -> None:
    model = FAMILIES["llama"].build().train()
    before = footprint(model)
    result = hlscore.rank(model, byte_tokenizer(), data=ROWS, budget=0.3, rank=4)
    assert footprint(model) == before
    assert len(result.full_modules) == 4
    assert result.rows[0].module == result.full_modules[0]
    assert result.plan.totals.full_modules == 4
    assert len(result.to_pandas()) == len(result.rows)


def test_data_may_be_a_dataset_a_path_or_nothing(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    expected = hlscore.rank(model, tokenizer, data=ROWS, rank=4).rows
    table = datasets.Dataset.from_list(ROWS)
    assert hlscore.rank(model, tokenizer, data=table, rank=4).rows == expected
    table.to_parquet(str(tmp_path / "rows.parquet"))
    assert hlscore.rank(model, tokenizer, data=tmp_path / "rows.parquet", rank=4).rows == expected
    builtin = hlscore.rank(model, tokenizer, samples=8, rank=4)
    assert builtin.report.probes.source == "builtin:new"


def test_saved_files_hold_the_records(tmp_path: Path) -> None:
    result = hlscore.rank(
        FAMILIES["gpt2"].build(), byte_tokenizer(), data=ROWS, budget="0.5p", rank=4
    )
    paths = result.save(tmp_path / "out")
    assert pq.read_table(paths["scores.parquet"]).equals(to_table(result.report))
    again = hlscore.RankResult(report=result.report, plan=result.plan)
    again.save(tmp_path / "out", force=True)


def test_cli_and_api_find_the_same_on_the_built_in_model() -> None:
    loaded = load_model(ModelSettings(model="builtin:tiny"))
    result = hlscore.rank(loaded.model, loaded.tokenizer, samples=16, budget=0.1)
    assert result.report.model.fingerprint == loaded.identity.fingerprint
    assert len(result.full_modules) <= 4


def test_errors_are_the_project_s_own() -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    with pytest.raises(BudgetError):
        hlscore.rank(model, tokenizer, data=ROWS, budget=2)
    with pytest.raises(DataError):
        hlscore.rank(model, tokenizer, data=[{"question": "?"}, {"question": "!"}])
    with pytest.raises(DataError):
        hlscore.rank(model, tokenizer, data=[])


def test_import_is_light() -> None:
    code = "import sys, hlscore; assert hlscore.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_works_inside_inference_mode() -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    expected = hlscore.rank(model, tokenizer, data=ROWS, rank=4).rows
    with torch.inference_mode():
        assert hlscore.rank(model, tokenizer, data=ROWS, rank=4).rows == expected


def test_rows_in_memory_are_drawn_as_from_a_file(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"].build(), byte_tokenizer()
    datasets.Dataset.from_list(ROWS).to_json(str(tmp_path / "rows.jsonl"))
    first = hlscore.rank(model, tokenizer, data=ROWS, samples=6, seed=3, rank=4)
    second = hlscore.rank(model, tokenizer, data=tmp_path / "rows.jsonl", samples=6, seed=3, rank=4)
    assert first.report.probes.hash == second.report.probes.hash


@pytest.mark.parametrize("data", [["text", "more"], [1, 2], {"train": ROWS}])
def test_other_data_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="list of mappings"):
        hlscore.rank(FAMILIES["llama"].build(), byte_tokenizer(), data=data)


def test_one_glob_needs_no_list() -> None:
    result = hlscore.rank(
        FAMILIES["llama"].build(), byte_tokenizer(), data=ROWS, include="*.mlp.*", budget=0.5
    )
    assert {row.block for row in result.report.candidates} == {"mlp"}


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
