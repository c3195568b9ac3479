"""The files: types, round trips, schema, atomic writing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import jsonschema
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from console import hlscore
from pydantic import ValidationError
from reports import report

from hlscore.artifacts.files import check_folder, default_folder, write_files
from hlscore.artifacts.plan import Plan, plan_schema
from hlscore.artifacts.plan_file import plan_text, write_plan
from hlscore.artifacts.report import METADATA_KEY, read_report, report_schema, write_report
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.make_plan import make_plan
from hlscore.settings import PlanSettings

DOCUMENTED = {
    "rank": "int64", "module": "string", "parameter": "string", "layer": "int64",
    "kind": "string", "block": "string", "matrices": "int64", "matrices_reached": "int64",
    "out_features": "int64", "in_features": "int64", "n_params": "int64", "form": "string",
    "storage": "string", "hls": "double",
    "hls_stderr": "double", "hls_ci_low": "double", "hls_ci_high": "double",
    "hls_share": "double", "hls_error": "double", "selection_probability": "double",
    "tail": "double",
    "grad_norm": "double", "taylor": "double", "taylor_mean": "double", "rgn": "double",
    "l1_adam": "double", "snr": "double", "spectral": "double", "kappa": "double",
    "random": "double", "grad_energy": "double", "head_energy": "double", "tail_energy": "double",
    "residual_ratio": "double", "stable_rank": "double", "effective_rank": "double",
    "rank_for_90": "int64", "halves_norm": "double", "weight_norm": "double",
    "condition_number": "double", "rgn_error": "double",
    "grad_energy_error": "double", "head_energy_error": "double", "tail_energy_error": "double",
    "residual_ratio_error": "double", "stable_rank_error": "double",
    "rank_for_90_error": "double", "curve_ranks": "list<int64>", "tail_curve": "list<double>",
    "tail_curve_errors": "list<double>", "hls_curve": "list<double>",
    "hls_curve_errors": "list<double>", "l1_adam_curve": "list<double>",
    "spectral_ranks": "list<int64>", "spectral_curve": "list<double>",
    "hls_replicates": "list<float>", "tail_replicates": "list<float>",
    "grad_norm_replicates": "list<float>", "status": "string", "reason": "string",
    "left_out": "string", "tied_to": "string",
}  # fmt: skip


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "seed=3" / "scores.parquet"  # folders like partitions change nothing
    path.parent.mkdir()
    write_report(report(9), path)
    return path


def test_columns_have_the_documented_types(scores: Path) -> None:
    schema = pq.read_schema(scores)
    types = {
        field.name: f"list<{field.type.value_type}>" if pa.types.is_list(field.type)
        else str(field.type) for field in schema
    }  # fmt: skip
    assert types == DOCUMENTED
    assert schema.equals(report_schema(), check_metadata=False)


def test_other_libraries_read_it(scores: Path) -> None:
    frame = pd.read_parquet(scores)
    assert list(frame.columns) == list(DOCUMENTED)
    assert (frame["hls"].dtype, frame["n_params"].dtype) == ("float64", "int64")
    assert list(frame["tail_curve"][0]) == list(report(9).rows[0].tail_curve)
    described = duckdb.sql(f"describe select * from '{scores}'").fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    expected = {"module": "VARCHAR", "layer": "BIGINT", "n_params": "BIGINT", "hls": "DOUBLE",
                "tail_curve": "DOUBLE[]", "hls_replicates": "FLOAT[]"}  # fmt: skip
    assert {name: kinds[name] for name in expected} == expected
    total = duckdb.sql(f"select count(*) from '{scores}' where status = 'scored'").fetchall()
    assert total == [(9,)]
    schema = pl.read_parquet(scores).schema
    assert list(schema) == list(DOCUMENTED)
    assert (schema["module"], schema["layer"], schema["hls"]) == (pl.String, pl.Int64, pl.Float64)
    assert schema["hls_curve"] == pl.List(pl.Float64)


@pytest.mark.parametrize("sketched", [False, True], ids=["exact", "sketch"])
def test_report_survives_the_round_trip(tmp_path: Path, *, sketched: bool) -> None:
    expected = report(9)
    if sketched:
        rows = tuple(replace(row, taylor=None, effective_rank=None) for row in expected.rows)
        run = replace(expected.run, estimator="sketch", sketch_size=64, notes=("sketch.", "b"))
        expected = replace(expected, rows=rows, run=run)
    write_report(expected, tmp_path / "scores.parquet")
    found = read_report(tmp_path / "scores.parquet")
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert mine.hls_replicates == pytest.approx(theirs.hls_replicates, rel=1e-6)
        lists = {"hls_replicates": (), "tail_replicates": (), "grad_norm_replicates": ()}
        assert replace(mine, **lists) == replace(theirs, **lists)  # type: ignore[arg-type]
    for part in ("model", "probes", "run"):
        assert getattr(found, part) == getattr(expected, part)


def test_metadata_names_the_origin(scores: Path) -> None:
    origin = json.loads(pq.read_schema(scores).metadata[METADATA_KEY])
    assert origin["schema_version"] == 1
    assert origin["model"]["fingerprint"] == {"structure": "sha256:0", "weights": "sha256:1"}
    assert origin["run"]["versions"] == {"torch": "2.13.0"}
    assert origin["probes"]["hash"] == "sha256:2"


def test_plans_follow_the_published_schema() -> None:
    schema = json.loads(json.dumps(plan_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    plan = make_plan(report(12), PlanSettings(budget="0.25p", rank=4))
    document = json.loads(plan_text(plan))
    jsonschema.validate(document, schema)
    assert Plan.model_validate_json(plan_text(plan)) == plan
    document["modules"][0]["mode"] = "half"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)
    with pytest.raises(ValidationError):
        Plan.model_validate(document)


def test_plan_text_is_stable_and_ordered() -> None:
    base = report(12)
    base = replace(base, probes=replace(base.probes, notes=("3 examples were cut.",)))
    settings = PlanSettings(budget="0.25", rank=4)
    text = plan_text(make_plan(base, settings))
    assert text == plan_text(make_plan(base, settings))
    document = json.loads(text)
    assert list(document) == list(Plan.model_fields)
    assert [m["position"] for m in document["modules"]] == list(range(1, 13))
    full = [m for m in document["modules"] if m["mode"] == "full"]
    assert [m["rank"] for m in full] == [None] * 3
    assert document["budget"]["realized_module_share"] == 0.25
    trained = sum(m["trained_params"] for m in document["modules"])
    assert document["totals"]["trained_params"] == trained
    rates = document["learning_rates"]
    assert rates["lora"]["value"] == pytest.approx(10 * rates["full"]["value"])
    assert document["notes"][0] == "3 examples were cut."


def test_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def broken(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        write_files(tmp_path, {"a": lambda path: path.write_text("new") and None, "b": broken})
    assert (tmp_path / "a").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_existing_results_are_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="already exists"):
        check_folder(tmp_path, ("scores.parquet", "plan.json"), force=False)
    check_folder(tmp_path, ("scores.parquet", "plan.json"), force=True)
    check_folder(tmp_path / "new" / "folder", ("plan.json",), force=False)
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]


def test_default_folder_is_named_after_the_model(tmp_path: Path) -> None:
    assert str(default_folder("builtin:tiny")) == "hlscore-out/builtin-tiny"
    assert str(default_folder("Qwen/Qwen3-0.6B")) == "hlscore-out/Qwen-Qwen3-0.6B"
    (tmp_path / "my model").mkdir()
    assert str(default_folder(str(tmp_path / "my model"))) == "hlscore-out/my-model"


def test_the_other_artifact_is_named(tmp_path: Path) -> None:
    made = report(20)
    scores, plan = tmp_path / "scores.parquet", tmp_path / "plan.json"
    write_report(made, scores)
    write_plan(make_plan(made, PlanSettings(rank=4)), plan)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    no_plan = "is not a plan: it is a Parquet file, such as scores.parquet"
    for command, message in (
        (("report", plan), f"'{plan}' is JSON, such as a plan, and scores are asked for"),
        (("plan", plan), "Give the scores.parquet that `hlscore rank` wrote"),
        (("export", scores, "--to", "trl"), no_plan),
        (("validate", "x", "--plan", scores), no_plan),
        (("report", tmp_path / "torn.parquet"), "is not a Parquet file"),
    ):
        done = hlscore(*command)
        assert done.code != 0
        assert message in done.err
