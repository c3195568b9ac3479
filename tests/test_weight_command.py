"""`hlscore rank --data none` and `--weight-scores` on the command line, and what follows them."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from console import QUICK, Outcome, hlscore, save_model
from families import FAMILIES

import hlscore as package
from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.artifacts.report import read_report
from hlscore.inputs.model import load_model
from hlscore.records import NO_PROBES
from hlscore.settings import ModelSettings

TINY = "builtin:tiny"


def rank(folder: Path, *options: object, model: object = TINY) -> Outcome:
    return hlscore("rank", model, "--data", "none", "-o", folder, *options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert rank(folder).code == 0
    return folder


def test_snr_decides_and_nothing_is_said_to_be_probed(made: Path, tmp_path: Path) -> None:
    found = rank(tmp_path, "--top", "3")
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[1] == "no probes"
    assert lines[2].startswith("singular values of the weights · ")
    assert found.notes == ["note: Nothing was probed: the scores come from the weights alone."]
    assert (made / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    report, plan = read_report(tmp_path / "scores.parquet"), read_plan(tmp_path / "plan.json")
    assert report.probes == NO_PROBES
    assert (report.run.estimator, report.run.score, report.run.sketch_size) == ("none", "snr", None)
    probes = plan.provenance.probes
    assert (probes.source, probes.objective, probes.hash) == ("none", "none", "none")
    assert (probes.examples, probes.counted_tokens, probes.mean_loss) == (0, 0, None)
    assert plan.provenance.estimator == "none"
    assert plan.totals.full_modules == 4
    values = [row.snr or 0 for row in report.candidates]
    assert values == sorted(values, reverse=True)
    assert [item.module for item in plan.full] == [row.module for row in report.candidates[:4]]
    assert all("no probe token" not in item.remark for item in plan.modules)


@pytest.mark.parametrize("score", ["spectral", "kappa", "random"])
def test_every_score_of_weights_decides(score: str, tmp_path: Path) -> None:
    found = rank(tmp_path, "--score", score, "--json")
    assert found.code == 0, found.err
    plan = Plan.model_validate_json(json.dumps(json.loads(found.out)["plan"]))
    scores = [item.score or 0 for item in plan.modules]
    assert scores == sorted(scores, reverse=True)
    assert (plan.score.name, plan.totals.full_modules) == (score, 4)


def test_modules_without_a_value_come_last_and_are_told(tmp_path: Path) -> None:
    """Weights much wider than high: every singular value lies above Spectrum's threshold."""
    save_model(tmp_path / "model", model=FAMILIES["qwen3_next"].build())
    found = rank(tmp_path / "out", "--budget", "0.3", model=tmp_path / "model")
    assert found.code == 0, found.err
    rows = read_report(tmp_path / "out/scores.parquet").candidates
    without = [row for row in rows if row.snr is None]
    assert without
    assert list(rows[-len(without) :]) == without
    assert all("snr is infinite" in row.reason for row in without)
    said = f"{len(without)} of {len(rows)} modules have no 'snr' and come last"
    assert any(said in note for note in found.notes)
    plan = read_plan(tmp_path / "out/plan.json")
    assert not {item.module for item in plan.full} & {row.module for row in without}


def test_a_saved_model_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", model=FAMILIES["qwen3_moe"].build())
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()

    refuse = Mock(side_effect=AssertionError("the model was loaded"))
    monkeypatch.setattr("hlscore.inputs.model.load_weights", refuse)
    found = rank(tmp_path / "out", model=tmp_path / "model")
    assert found.code == 0, found.err
    assert len(read_report(tmp_path / "out/scores.parquet").candidates) > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--score", "hls"), "The score 'hls' comes from gradients"),
        (("--score", "nonsense"), "There is no score 'nonsense'"),
        (("--samples", "64"), "--samples is for probes"),
        (("--objective", "dpo"), "--objective is for probes"),
        (("--estimator", "sketch"), "--estimator is for probes"),
        (("--no-checkpointing",), "--checkpointing is for probes"),
        (("--trial-steps", "3"), "--trial-steps is for probes"),
        (("--dtype", "bfloat16"), "--dtype is for probes"),
        (("--shard",), "--shard is for probes"),
        (("--resume",), "--resume continues stored probes"),
        (("--ranks", "4,8"), "--ranks needs a score with a value for each rank"),
        (("--device", "cuda:7"), "--device is 'cuda:7'"),
        (("--include", "nothing*"), "--include 'nothing*' matches none"),
        (("--budget", "1kB"), "too small"),
    ],
)
def test_what_contradicts_is_one_line(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    found = rank(tmp_path, *options)
    assert says in found.message
    assert found.code in (2, 3)
    assert not list(tmp_path.iterdir())


def test_quantized_and_pickled_checkpoints_are_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    found = rank(tmp_path / "out", model=model)
    assert (found.code, "is quantized (gptq)" in found.message) == (3, True)
    pickled = save_model(tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "only has pickle weights" in rank(tmp_path / "out", model=pickled).message
    found = rank(tmp_path / "out", "--allow-pickle", model=pickled)
    assert "has no .safetensors file" in found.message
    assert not (tmp_path / "out").exists()


def test_ctrl_c_and_several_processes_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("hlscore.weights.decomposition.singular_values", interrupt)
    assert rank(tmp_path).code == 130
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    found = rank(tmp_path)
    assert "runs in one process, and 2 were started" in found.message
    assert found.code == 2
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_would_be_read(tmp_path: Path) -> None:
    found = rank(tmp_path, "--dry-run")
    assert found.code == 0
    assert "42 singular value decompositions" in found.out
    assert "read tensor by tensor from its files" in found.out
    assert found.out.endswith("Nothing was run or written.\n")
    told = json.loads(rank(tmp_path, "--dry-run", "--json").out)
    assert (told["matrices"], told["largest_weight_bytes"]) == (42, 128 * 256 * 4)
    assert (told["estimator"], told["budget_unit"], told["budget_limit"]) == ("none", "module", 4)
    assert not list(tmp_path.iterdir())
    for option, value, says in (
        ("--score", "hls", "comes from gradients"),
        ("--budget", "1kB", "too small"),
        ("--lock", "nothing*=full", "matches none"),
    ):
        assert says in rank(tmp_path, "--dry-run", option, value).message


@pytest.mark.parametrize(
    "command",
    [
        ("show", "scores.parquet"),
        ("show", "scores.parquet", "-m", "model.layers.0.mlp.down_proj"),
        ("compare", "scores.parquet"),
        ("diff", "scores.parquet", "plan.json"),
        ("check", "plan.json", "--model", TINY, "--weights"),
        ("report", "scores.parquet", "plan.json", "-o", "page.html"),
        ("plan", "scores.parquet", "--score", "spectral", "--rank", "8", "-o", "other.json"),
        ("plan", "scores.parquet", "--baseline", "lora-matched", "-o", "baseline.json"),
        ("export", "plan.json", "--to", "trl", "-o", "trl"),
    ],
    ids=" ".join,
)
def test_what_follows_works_with_such_scores(
    command: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    arguments = [
        made / part if part in ("scores.parquet", "plan.json") else part for part in command
    ]
    if "-o" in command:
        arguments[-1] = tmp_path / command[-1]
    found = hlscore(*arguments)
    assert (found.code, found.err) == (0, "")
    assert "None" not in found.out
    if command[0] == "report":
        assert "come from the weights alone" in (tmp_path / command[-1]).read_text()
    if command[0] == "export":
        assert "train.py sft" in found.out


def test_scores_that_are_not_there_are_told(made: Path, tmp_path: Path) -> None:
    found = hlscore("plan", made / "scores.parquet", "--score", "hls", "-o", tmp_path / "p.json")
    assert "The report holds no value of 'hls'" in found.message
    assert "rank with probes" in found.message
    found = hlscore("plan", made / "scores.parquet", "--score", "spectral", "--rank", "7",
                    "-o", tmp_path / "p.json")  # fmt: skip
    assert "no score for rank 7" in found.message
    assert not list(tmp_path.iterdir())


def test_probes_and_weights_together(tmp_path: Path, made: Path) -> None:
    found = hlscore("rank", TINY, *QUICK, "--weight-scores", "-o", tmp_path / "both")
    assert found.code == 0, found.err
    assert "exact gradients" in found.out
    alone = {row.module: row for row in read_report(made / "scores.parquet").candidates}
    for row in read_report(tmp_path / "both/scores.parquet").candidates:
        assert row.hls is not None
        assert (row.snr, row.kappa) == (alone[row.module].snr, alone[row.module].kappa)
    plain = hlscore("rank", TINY, *QUICK, "-o", tmp_path / "plain")
    assert plain.code == 0
    rows = read_report(tmp_path / "plain/scores.parquet").candidates
    assert all(row.snr is row.spectral is row.kappa is row.condition_number is None for row in rows)
    none = hlscore(
        "plan", tmp_path / "plain/scores.parquet", "--score", "snr", "-o", tmp_path / "p.json"
    )
    assert "rank with --weight-scores" in none.message
    sketched = hlscore(
        "rank", TINY, *QUICK, "--estimator", "sketch", "--score", "kappa", "-o", tmp_path / "sketch"
    )
    assert sketched.code == 0, sketched.err
    rows = read_report(tmp_path / "sketch/scores.parquet").candidates
    assert rows[0].kappa == max(row.kappa or 0 for row in rows)
    assert {row.module: row.snr for row in rows} == {n: row.snr for n, row in alone.items()}
    assert all(row.l1_adam is None for row in rows)


def test_python_scores_the_weights_of_a_model_in_memory(made: Path) -> None:
    loaded = load_model(ModelSettings(model=TINY))
    result = package.rank(loaded.model, loaded.tokenizer, data="none")
    report = read_report(made / "scores.parquet")
    assert result.report.model.fingerprint == loaded.identity.fingerprint
    assert result.report.run.score == "snr"
    assert [row.module for row in result.rows] == [row.module for row in report.rows]
    values = {row.module: row.snr for row in report.rows}
    assert all(row.snr == values[row.module] for row in result.rows)
