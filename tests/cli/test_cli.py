"""The command line as a person or a script meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
import typer
from console import hlscore
from reports import report

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.artifacts.report import write_report
from hlscore.cli.main import app
from hlscore.settings import VALUE_POWER

OPTIONS = {
    "rank": "--accumulate-on --allow-pickle --alpha --assistant-only-loss --base --batch-size "
    "--beta --bootstrap --budget --checkpointing --column --data --data-config --device "
    "--device-map --dry-run --dtype --embeddings --epsilon --epsilon-high --estimator --exclude "
    "--force --gated-pairs --generate-batch --generations --groups --head --help "
    "--ignore-adapter --include --json --load-in --lock --loss-type --mask-truncated --master "
    "--max-length --max-memory --max-new-tokens --min-rank --movement --objective "
    "--offload-folder --optimizer --out --rank --ranks --resume --revision --reward "
    "--reward-timeout --reward-weight --rollouts --samples --save-every --scale-rewards --score "
    "--seed --shard --sketch-size --split --stop --svd --temperature --text-only --top --top-k "
    "--top-p --train-batch --train-length --trial-optimizer --trial-rate --trial-steps --trials "
    "--trust-remote-code --update --value-power --weight-scores",
    "plan": "--alpha --base --baseline --budget --force --gated-pairs --help --json --lock "
    "--master --min-rank --optimizer --out --rank --ranks --score --top --train-batch "
    "--train-length --value-power",
    "export": "--allow-other-weights --force --full-lr --help --json --list --lora-lr --model "
    "--nearest --out --to",
    "report": "--budget --force --help --json --out",
    "show": "--columns --help --json --kind --layer --match --mode --module --reverse --sort "
    "--status --top",
    "check": "--baseline --config --explain --for --format --help --ignore --json --max-age "
    "--max-borderline --max-changed --max-drift --min-overlap --min-selection-probability "
    "--min-tau --model --out --revision --strict --trust-remote-code --weights",
    "diff": "--budget --exit-code --help --json --rank --score --top",
    "compare": "--help --json --rank --ranks --score --top-k --within-kinds",
    "modules": "--all --embeddings --exclude --head --help --include --json --revision "
    "--text-only --trust-remote-code",
    "validate": "--allow-pickle --also --assistant-only-loss --batch-size --column --data "
    "--data-config --device --dry-run --dtype --force --full --held-out --help --json "
    "--max-length --out --plan --resume --revision --samples --seed --seeds --split --steps "
    "--trust-remote-code",
    "estimate": "--base --budget --embeddings --exclude --gpu --head --help --include --json "
    "--master --optimizer --rank --revision --text-only --train-batch --train-length "
    "--trust-remote-code",
    "audit": "--column --data --device --embeddings --exclude --force --head --help --include "
    "--json --max-length --model --out --plan --rank --revision --samples --top "
    "--trust-remote-code",
    "extract-lora": "--column --data --device --force --help --json --max-error --max-length "
    "--max-rank --model --out --revision --samples --top --trust-remote-code",
    "merge": "--force --help --json --model --out --revision --trust-remote-code",
    "scores": "--help --json",
    "schema": "--help",
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.parquet"
    write_report(report(20), path)
    return path


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process."""
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, errors="replace", check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


def test_commands_and_flags_change_only_on_purpose() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group | typer.core.TyperGroup)
    found = {}
    for name, command in group.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        flags = [p.opts[-1] if p.opts[-1].startswith("--") else p.opts[0]
                 for p in command.get_params(context) if p.param_type_name == "option"]  # fmt: skip
        found[name] = " ".join(sorted(flags))
    assert found == OPTIONS


@pytest.mark.parametrize("command", OPTIONS)
def test_help_shows_an_example(command: str) -> None:
    found = hlscore(command, "--help")
    assert found.code == 0
    assert f"hlscore {command}" in found.out


READ_ONLY = """
import sys
from hlscore.cli.main import _run

for line in sys.argv[1:]:
    sys.argv = ["hlscore", *line.split()]
    assert _run() == 0, line
    heavy = {"torch", "transformers", "datasets", "pandas", "scipy"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def test_read_only_commands_import_no_torch(scores: Path) -> None:
    found = run(
        "-c", READ_ONLY, "--help", "--version", "schema", "scores", "plan --help", "rank --help",
        "export --list", "export --help", "plan scores.parquet -o plan.json",
        "plan scores.parquet --budget 0.2 -o new.json", "show scores.parquet",
        "show plan.json --json", "show scores.parquet -m 0.mlp.down_proj", "check plan.json",
        "check plan.json --for peft --baseline plan.json", "check --explain HLS101",
        "check plan.json --format sarif", "diff plan.json scores.parquet",
        "diff scores.parquet scores.parquet --json", "compare scores.parquet",
        "compare scores.parquet scores.parquet --within-kinds",
        "report scores.parquet plan.json -o r.html", "report scores.parquet -o r.md",
        "report scores.parquet -o r.svg",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def test_schema_and_scores_can_be_read_by_programs() -> None:
    assert json.loads(hlscore("schema").out)["title"] == "Plan"
    found = json.loads(hlscore("scores", "--json").out)
    assert [item["name"] for item in found][:2] == ["hls", "tail"]
    assert "No score is proven" in hlscore("scores").out


def test_rank_writes_shows_and_repeats(tmp_path: Path) -> None:
    # Probes that the model knows: some modules have no signal, and a plan of ranks freezes them.
    options = (
        "--data", "builtin:known", "--samples", "32", "--bootstrap", "20", "--movement", "gradient",
    )  # fmt: skip
    first = hlscore("rank", "builtin:tiny", "--budget", "0.1", *options)
    assert first.code == 0, first.err
    assert first.err == ""
    folder = tmp_path / "hlscore-out" / "builtin-tiny"
    assert sorted(item.name for item in folder.iterdir()) == ["plan.json", "scores.parquet"]
    for text in ("4 of 42 modules", "plain LoRA", "full fine-tuning", "stable", "layer", "next",
                 "hlscore plan", "model.layers.0.mlp."):  # fmt: skip
        assert text in first.out
    printed = [line.split()[1:] for line in first.out.splitlines() if "hlscore plan" in line]
    for command in printed:
        assert hlscore(*command).code == 0
    plan = read_plan(folder / "plan.json")
    cost = f"{plan.totals.trained_params // 1000}k"
    every = ("--ranks", "4,8,16,32,64", "--budget", cost, "-o", "plan-ranks.json")
    assert hlscore("plan", folder / "scores.parquet", *every).code == 0
    ranked = read_plan(tmp_path / "plan-ranks.json")
    assert ranked.lora.ranks == [4, 8, 16, 32, 64]
    assert ranked.totals.trained_params <= plan.totals.trained_params
    silent = f"{ranked.totals.frozen_modules} of 42 modules stay frozen"
    assert any(note.startswith(silent) for note in ranked.notes)
    assert (plan.settings.value_power, ranked.settings.value_power) == (VALUE_POWER, VALUE_POWER)
    second = hlscore("rank", "builtin:tiny", "--budget", "0.1", *options, "-o", "again", "--json")
    result = json.loads(second.out)
    again = tmp_path / "again"
    assert (again / "plan.json").read_bytes() == (folder / "plan.json").read_bytes()
    assert pq.read_table(again / "scores.parquet").equals(pq.read_table(folder / "scores.parquet"))
    assert Plan.model_validate(result["plan"]) == plan
    assert result["plan_file"] == "again/plan.json"
    assert hlscore("plan", folder / "scores.parquet", "-o", "same.json").code == 0
    assert (tmp_path / "same.json").read_bytes() == (folder / "plan.json").read_bytes()


def test_rank_scores_trials_unless_told_otherwise(tmp_path: Path) -> None:
    command = ("rank", "builtin:tiny", "--budget", "0.1", "--samples", "32")
    found = hlscore(*command)
    assert found.code == 0, found.err
    assert "exact weight updates" in found.out
    assert "4 trials of 4 steps (not 64: a step has two examples)" in found.out
    # Ranks by trials did no better than one rank, so no such plan is advertised.
    assert "--ranks" not in found.out
    written = (tmp_path / "hlscore-out" / "builtin-tiny" / "plan.json").read_bytes()
    assert hlscore(*command, "-o", "again", "--movement", "trial").code == 0
    assert (tmp_path / "again" / "plan.json").read_bytes() == written


def test_plan_takes_other_budgets_scores_and_ranks(scores: Path) -> None:
    arguments = (scores, "--budget", "0.3p", "--score", "tail", "--rank", "8", "--json")
    plan = json.loads(hlscore("plan", *arguments, "-o", "other.json").out)["plan"]
    assert plan["budget"]["unit"] == "parameters"
    assert plan["budget"]["realized_parameter_share"] <= 0.3
    assert plan["lora"] == {"rank": 8, "alpha": 16, "ranks": []}
    assert plan["score"]["name"] == "tail"
    assert hlscore("plan", *arguments, "-o", "other.json").code == 2
    ranked = hlscore("plan", scores, "--ranks", "4,8", "-b", "0.1", "-o", "ranked.json").out
    assert "allowed; at most 8.09 k parameters trained" in ranked


def test_dry_run_says_what_would_happen_and_writes_nothing(tmp_path: Path) -> None:
    found = hlscore("rank", "builtin:tiny", "--dry-run")
    assert found.code == 0, found.err
    for text in ("42 candidates", "320 probe examples", "exact", "MiB", "4 modules",
                 "Nothing was run"):  # fmt: skip
        assert text in found.out
    as_json = json.loads(hlscore("rank", "builtin:tiny", "--dry-run", "--json").out)
    assert as_json["candidate_modules"] == 42
    assert as_json["gradient_bytes"] > 8 * 884_736
    assert 8 * 884_736 < as_json["disk_bytes"] <= as_json["gradient_bytes"]
    assert as_json["process_bytes"] > 1e8  # torch alone takes more
    assert as_json["probe_seconds"] > 0
    assert as_json["generation_bytes"] == 0
    assert [as_json[name] for name in ("trials", "trial_steps", "trial_rate")] == [4, 40, None]
    assert "trials    4 of 40 steps, and a search for the learning rate" in found.out
    ranks = hlscore("rank", "builtin:tiny", "--dry-run", "--ranks", "4,8", "--budget", "100k").out
    assert "at most 100,000 parameters trained in all" in ranks
    sampled = ("rank", "builtin:tiny", "--objective", "grpo", "--reward", "numeric", "--dry-run",
               "--samples", "8", "--max-new-tokens", "32", "--json")  # fmt: skip
    more = json.loads(hlscore(*sampled, "--generate-batch", "640").out)
    less = json.loads(hlscore(*sampled).out)
    assert more["generation_bytes"] == 10 * less["generation_bytes"] > 0
    assert more["peak_bytes"] == more["weight_bytes"] + more["generation_bytes"]
    assert not list(tmp_path.iterdir())


def test_dry_run_tells_what_the_run_would_be_refused_for(tmp_path: Path) -> None:
    dry = ("rank", "builtin:tiny", "--dry-run", "-o", "taken")
    (tmp_path / "taken").mkdir()
    assert "no unfinished run in 'taken'" in hlscore(*dry, "--resume").message
    (tmp_path / "taken" / "plan.json").touch()
    found = hlscore(*dry)
    assert found.code == 0
    assert "would be refused: 'taken/plan.json' already exists" in found.err
    assert "refused" not in hlscore(*dry, "--force").err
    (tmp_path / "empty").mkdir()
    for update, message in (("./absent", "no model directory"), ("empty", "not a finished")):
        found = hlscore("rank", "builtin:tiny", "--dry-run", "--update", update)
        assert found.code == 3
        assert message in found.message


def test_modules_lists_shapes_without_weights(tmp_path: Path) -> None:
    found = hlscore("modules", "builtin:tiny")
    assert "42 candidate modules" in found.out
    assert "884,736" not in found.err
    assert "lm_head" in hlscore("modules", "builtin:tiny", "--all").out
    as_json = json.loads(hlscore("modules", "builtin:tiny", "--json").out)
    assert len([m for m in as_json["modules"] if not m["reason"]]) == 42
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}  # fmt: skip
    (tmp_path / "config-only").mkdir()
    (tmp_path / "config-only" / "config.json").write_text(json.dumps(config))
    assert "14 candidate modules" in hlscore("modules", "config-only").out


def test_unknown_command_and_missing_argument_are_usage_errors() -> None:
    assert hlscore("nonsense").code == 2
    assert hlscore("rank").code == 2


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ("check plan.json --format junit --json", "--format", "--json"),
        ("export --list --to peft", "--list", "--to"),
        ("export plan.json --list", "--list", "a plan"),
        ("report scores.parquet plan.json --budget 0.2", "--budget", "a plan"),
        ("compare scores.parquet --rank 8 --ranks 4,8", "--rank", "--ranks"),
    ],
)
def test_options_that_contradict_each_other(words: str, first: str, second: str) -> None:
    found = hlscore(*words.split())
    assert found.code == 2
    assert f"{first} and {second} are mutually exclusive." in found.message


def test_help_survives_terminals_without_unicode() -> None:
    assert run("-m", "hlscore", "rank", "--help", PYTHONIOENCODING="ascii").returncode == 0


def test_other_rank_shows_no_standard_error_and_its_own_remarks(
    scores: Path, tmp_path: Path
) -> None:
    found = hlscore("plan", scores, "--rank", "16", "--budget", "0.5", "-o", "a.json")
    first = next(line for line in found.out.splitlines() if "layers.0.self_attn.q_proj" in line)
    assert first.split()[3:5] == ["-", "-"]
    small = [replace(r, out_features=8, n_params=8 * r.in_features) for r in report(8).rows]
    write_report(replace(report(8), rows=tuple(small)), tmp_path / "small.parquet")
    budget = ("--rank", "8", "--budget", "1p", "--score", "tail")
    assert hlscore("plan", "small.parquet", *budget, "-o", "b.json").code == 0
    remarks = {item.remark for item in read_plan(tmp_path / "b.json").modules}
    assert remarks == {"LoRA of rank 8 spans the whole matrix (min side 8)"}
