"""`hlscore validate` from the command line: the trainings, their file, resuming, errors."""

from __future__ import annotations

import io
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Outcome, hlscore, save_model, write_rows
from families import FAMILIES

from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError
from hlscore.inputs.model import load_model
from hlscore.settings import DataSettings, ModelSettings, ValidateSettings
from hlscore.unfinished import unfinished_runs
from hlscore.validation import run as running
from hlscore.validation import training
from hlscore.validation.run import prepare
from hlscore.validation.training import Training, Validation, train
from hlscore.views.terminal import Terminal
from hlscore.views.validation import print_validation

WORDS = ("red", "green", "blue", "black", "white", "pink")
BRIEF = ("--steps", "3", "--seeds", "2", "--batch-size", "4")
ARMS = ("lora", "matched", "rslora", "random", "largest", "last_layers", "plan", "full")
Tried = tuple[Outcome, dict[str, Any]]
# What each training of `tried` came to.
OUTCOMES: dict[Training, training.Outcome] = {}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, examples and a plan for it, in files."""
    folder = tmp_path_factory.mktemp("validate")
    save_model(folder / "model")
    rows = [
        {"prompt": f"{a} and {b} then", "completion": f" {b} or {a}"}
        for a in WORDS for b in WORDS
    ]  # fmt: skip
    write_rows(folder / "train.jsonl", rows)
    ranked = hlscore(
        "rank", folder / "model", "--data", folder / "train.jsonl", "--samples", "8",
        "--bootstrap", "0", "--rank", "2", "--budget", "0.2", "-o", folder / "scores",
    )  # fmt: skip
    assert ranked.code == 0, ranked.err
    return folder


def words(desk: Path, out: Path) -> tuple[object, ...]:
    return (
        "validate", desk / "model", "--plan", desk / "scores" / "plan.json",
        "--data", desk / "train.jsonl", "-o", out, *BRIEF,
    )  # fmt: skip


def validate(desk: Path, out: Path, *more: object) -> Outcome:
    return hlscore(*words(desk, out), *more)


@pytest.fixture(scope="module")
def tried(desk: Path) -> Tried:
    """A whole validation, with three learning rates for each arm."""

    def kept(validation: Validation, wanted: Training, *, steps: int) -> training.Outcome:
        OUTCOMES[wanted] = train(validation, wanted, steps=steps)
        return OUTCOMES[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "MOST_EXTENSIONS", 0)
        patch.setattr(running, "train", kept)
        found = validate(desk, desk / "out")
    assert found.code == 0, found.err
    assert names(desk / "out") == ["validation.json"]
    return found, json.loads((desk / "out" / "validation.json").read_text())


def made_up(validation: Validation, wanted: Training, *, steps: int) -> training.Outcome:
    """An outcome without a training: losses that differ between arms, seeds and rates."""
    own = 1 + (ARMS.index(wanted.arm) + wanted.seed) / 10
    own += abs(math.log(wanted.full_factor)) + abs(math.log(wanted.lora_factor))
    return training.Outcome(
        training=wanted, steps=(1, 2, 3), curve=(own,) * 3, tuning_loss=own,
        sums=tuple(own * item.counted_tokens for item in validation.test), seconds=1.0,
        measuring_seconds=0.0,
        also_sums=tuple((own + 1) * item.counted_tokens for item in validation.also),
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def without_times(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    times = ("seconds_per_training", "training_seconds")
    return {key: without_times(item) for key, item in value.items() if key not in times}


def test_the_file_has_every_figure_and_the_verdict_stands_first(desk: Path, tried: Tried) -> None:
    found, content = tried
    assert tuple(content["arms"]) == ARMS
    assert content["examples"] == {"training": 26, "tuning": 5, "test": 5}
    for name, arm in content["arms"].items():
        assert arm["curve"]["steps"] == [1, 2, 3]
        seeds = arm["curve"]["seeds"]
        assert len(seeds) == 2
        assert arm["loss"]["value"] == pytest.approx(sum(curve[-1] for curve in seeds) / 2)
        assert arm["loss"]["low"] <= arm["loss"]["value"] <= arm["loss"]["high"]
        # A hybrid has two rates of its own, full fine-tuning and LoRA alone have one.
        both = name in ("random", "largest", "last_layers", "plan")
        assert len(arm["rate_factors"]) == (5 if both else 3)
        for tried_rates in arm["rate_factors"]:
            assert (tried_rates["full_factor"] is None) == (name in ("lora", "matched", "rslora"))
            assert (tried_rates["lora_factor"] is None) == (name == "full")
        best = min(arm["rate_factors"], key=lambda item: item["tuning_loss"])
        for group, suggested in (("full", 2e-5), ("lora", 2e-4)):
            factor, rate = best[f"{group}_factor"], arm["learning_rates"][group]
            assert rate == (None if factor is None else pytest.approx(factor * suggested))
        assert arm["memory_bytes"] > 0
    losses = {name: arm["loss"]["value"] for name, arm in content["arms"].items()}
    ahead = content["arms"]["plan"]["better_than"]["matched"]["value"]
    assert ahead == pytest.approx(losses["matched"] - losses["plan"])
    assert content["made_with"]["settings"]["steps"] == 3
    assert set(content["made_with"]) >= {"hlscore", "data", "model"}

    # Sizes are those of the plans.
    sizes = {name: arm["trained_params"] for name, arm in content["arms"].items()}
    plan = read_plan(desk / "scores" / "plan.json")
    assert sizes["plan"] == plan.totals.trained_params
    assert sizes["full"] == sum(item.params for item in plan.modules)
    assert sizes["lora"] == sum(
        2 * item.matrices * (item.in_features + item.out_features) for item in plan.modules
    )
    each = sizes["lora"] / 2
    assert abs(sizes["matched"] - plan.totals.trained_params) <= each / 2
    assert sizes["random"] <= plan.totals.trained_params + each

    lines = found.out.splitlines()
    assert lines[: len(content["verdict"])] == content["verdict"]
    assert sizes["rslora"] == sizes["matched"]
    for label in (
        "LoRA", "LoRA of equal size", "rsLoRA of equal size", "random choice", "last layers",
        "the plan", "full",
    ):  # fmt: skip
        assert sum(line.startswith(f"{label} ") for line in lines) >= 2, label
    assert "2 seeds are few" in found.out
    assert not [line for line in found.err.splitlines() if "Warning" in line]


def test_the_next_commands_export_the_plan_and_make_the_lora_of_equal_size(
    desk: Path, tried: Tried, tmp_path: Path
) -> None:
    found, content = tried
    commands = [shlex.split(line) for line in found.out.splitlines() if "  hlscore " in line]
    export = next(words for words in commands if words[1] == "export")
    rates = content["arms"]["plan"]["learning_rates"]
    assert export[-4:] == ["--full-lr", f"{rates['full']:.3g}", "--lora-lr", f"{rates['lora']:.3g}"]
    place = export.index("-o") + 1
    ran = hlscore(*export[1:place], tmp_path / "hybrid", *export[place + 1 :])
    assert ran.code == 0, ran.err

    command = next(words for words in commands if words[1] == "plan")[1:]
    assert command[-2:] == ["-o", "lora.json"]
    ran = hlscore(*command[:-1], tmp_path / "lora.json")
    assert ran.code == 0, ran.err
    made = read_plan(tmp_path / "lora.json")
    rivals = [content["arms"][name] for name in ("matched", "rslora")]
    rival = min(rivals, key=lambda arm: arm["loss"]["value"])
    assert made.totals.trained_params == rival["trained_params"]
    assert made.modules[0].rank == rival["lora_rank"]
    assert made.modules[0].alpha == rival["lora_alpha"]

    # It has the budget and the ranks of the plan; without scores beside it there is none.
    scores, path = desk / "scores" / "scores.parquet", tmp_path / "plan.json"
    options = ("--budget", "6k", "--ranks", "1,2,4", "--value-power", "0.5")
    assert hlscore("plan", scores, *options, "-o", path).code == 0

    def printed_commands() -> list[str]:
        printed = io.StringIO()
        console = Terminal(file=printed, width=200)
        print_validation(content, tmp_path / "x.json", read_plan(path), path, console=console)
        lines = printed.getvalue().splitlines()
        return [line.strip() for line in lines if line.startswith("  hlscore ")]

    assert [line.split()[1] for line in printed_commands()] == ["export"]
    shutil.copy(scores, tmp_path)
    asked = f"hlscore plan {tmp_path / 'scores.parquet'} {shlex.join(options)}"
    alpha = rival["lora_alpha"] // rival["lora_rank"] * 2
    scaled = f" --alpha {alpha}" if rival is rivals[1] else ""
    (again,) = [line for line in printed_commands() if line.startswith("hlscore plan")]
    assert again == f"{asked}{scaled} --baseline lora-matched -o lora.json"
    assert hlscore(*shlex.split(again)[1:-1], tmp_path / "again.json").code == 0


def test_a_loss_that_rounds_to_the_same_is_no_change(desk: Path, tried: Tried) -> None:
    content, path, printed = tried[1], desk / "scores" / "plan.json", io.StringIO()
    loss = content["arms"]["plan"]["curve"]["mean"][-1]
    console = Terminal(file=printed, width=200)
    same = content | {"untrained_loss": loss}
    print_validation(same, path, read_plan(path), path, console=console)
    assert f"{loss:.4f}, no change" in printed.getvalue()


def test_dry_run_trains_a_few_steps_and_writes_nothing(desk: Path) -> None:
    found = validate(desk, desk / "dry", "--dry-run", "--json")
    content = json.loads(found.out)
    assert (content["fewest_trainings"], content["most_trainings"]) == (48, 108)
    assert [arm["name"] for arm in content["arms"]] == list(ARMS)
    assert content["seconds_per_training"] > 0
    assert not (desk / "dry").exists()
    assert "no unfinished run" in validate(desk, desk / "dry", "--dry-run", "--resume").message
    shown = validate(desk, desk / "dry", "--dry-run", "--no-full")
    assert shown.out.startswith("43 to 98 trainings of 3 steps")
    assert " MiB" in shown.out
    assert "BB" not in shown.out


def test_without_full_no_gap_is_claimed_and_json_is_the_file(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "train", made_up)
    found = validate(desk, desk / "no-full", "--no-full", "--json")
    content = json.loads(found.out)
    written = json.loads((desk / "no-full" / "validation.json").read_text())
    assert content == {"path": str(desk / "no-full" / "validation.json"), **written}
    assert "full" not in content["arms"]
    assert all(arm["recovered"] is None for arm in content["arms"].values())
    assert content["verdict"][0].startswith("No verdict: 3 steps are too few to tell.")
    assert content["also"] is None


def test_forgetting_is_the_loss_on_other_data(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{a} plus", "completion": f" {a}{a}"} for a in "abcdefgh"]
    write_rows(desk / "other.jsonl", rows)
    monkeypatch.setattr(running, "train", made_up)
    same = validate(desk, desk / "also", "--also", desk / "train.jsonl")
    assert same.code == 2
    assert "forgetting is measured on other data" in same.message
    found = validate(desk, desk / "also", "--no-full", "--also", desk / "other.jsonl")
    assert found.code == 0, found.err
    assert "nats per token before the training" in found.out
    also = json.loads((desk / "also" / "validation.json").read_text())["also"]
    assert also["source"] == str(desk / "other.jsonl")
    assert also["examples"] == 8
    assert also["arms"].keys() == set(ARMS) - {"full"}
    model = load_model(ModelSettings(model=str(desk / "model")))
    losses = []
    for row in rows:
        prompt = model.tokenizer(row["prompt"]).input_ids
        ids = model.tokenizer(row["prompt"] + row["completion"]).input_ids
        whole = torch.tensor([[*ids, model.tokenizer.eos_token_id]])
        logits = model.model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses += (-logits.gather(1, whole[0, len(prompt) :, None])[:, 0]).tolist()
    assert also["untrained_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    for name, arm in also["arms"].items():
        expected = [2 + (ARMS.index(name) + seed) / 10 for seed in (0, 1)]
        assert arm["seeds"] == pytest.approx(expected)
        assert arm["forgotten"] == pytest.approx(sum(expected) / 2 - also["untrained_loss"])


def test_killed_trial_goes_on_to_the_same_figures(desk: Path, tried: Tried) -> None:
    out = desk / "killed"
    journal = out / ".hlscore-validation.jsonl"
    command = [sys.executable, "-m", "hlscore", *map(str, words(desk, out))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ends = time.monotonic() + 120
    while not journal.exists() or len(journal.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "validation.json").exists()
    assert not unfinished_runs(out)  # `rank` may write to the same folder
    with journal.open("a") as file:
        file.write('{"validation": {"arm": "lo')  # as a kill in the middle of a line leaves it

    refused = validate(desk, out)
    assert refused.code == 2
    assert "unfinished validation" in refused.message
    other = validate(desk, out, "--resume", "--seed", "1")
    assert other.code == 2
    assert "is another one: settings.seed was 0, now it is 1" in other.message

    finished = len(journal.read_text().splitlines()) - 1
    done: list[Training] = []

    def counted(_validation: Validation, wanted: Training, **_: Any) -> training.Outcome:
        done.append(wanted)
        return OUTCOMES[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "train", counted)
        patch.setattr(running, "MOST_EXTENSIONS", 0)
        resumed = validate(desk, out, "--resume")
    assert resumed.code == 0, resumed.err
    content = json.loads((out / "validation.json").read_text())
    assert without_times(content) == without_times(tried[1])
    rates = sum(len(arm["rate_factors"]) for arm in content["arms"].values())
    assert len(done) == rates + 2 * len(ARMS) - finished
    assert names(out) == ["validation.json"]


def prepared(desk: Path, model: str = "model") -> Any:
    settings = ValidateSettings(
        model=ModelSettings(model=str(desk / model), device="cpu"),
        data=DataSettings(data=str(desk / "train.jsonl"), samples=0),
        steps=3, seeds=2, batch_size=4,
    )  # fmt: skip
    return prepare(settings, read_plan(desk / "scores" / "plan.json"))


def test_arms_see_the_same_batches_and_the_model_stays(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = prepared(desk)
    before = {name: value.clone() for name, value in validation.model.state_dict().items()}
    seen: dict[str, list[torch.Tensor]] = {}
    kinds = {}
    inner = training._trainer

    def watched(validation: Any, plan: Any, wanted: Training, *given: Any) -> Any:
        trainer = inner(validation, plan, wanted, *given)
        compute = trainer.compute_loss

        def loss(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            seen.setdefault(wanted.arm, []).append(inputs["input_ids"].clone())
            return compute(model, inputs, *more, **named)

        trainer.compute_loss = loss
        kinds[wanted.arm] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        return trainer

    monkeypatch.setattr(training, "_trainer", watched)
    for arm in validation.arms:
        train(validation, Training(arm=arm.name, seed=0), steps=3)
    assert set(seen) == set(ARMS)
    for batches in seen.values():
        assert len(batches) == 3
        for mine, first in zip(batches, seen["lora"], strict=True):
            assert torch.equal(mine, first)
    for arm in validation.arms:
        assert kinds[arm.name] == arm.plans[0].totals.trained_params
    for name, value in validation.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_full_training_is_plain_adamw(desk: Path) -> None:
    """The arm `full` against a loop over the listed examples."""
    validation = prepared(desk)
    (arm,) = (arm for arm in validation.arms if arm.name == "full")
    validation = replace(validation, also=validation.test[:2])
    found = train(validation, Training(arm="full", seed=1, full_factor=0.5), steps=4)
    assert found.also_sums == pytest.approx(found.sums[:2], rel=1e-5)

    model = FAMILIES["llama"].build()
    model.load_state_dict(validation.model.state_dict())
    model.requires_grad_(False)
    wanted = {item.parameter for item in arm.plans[1].modules}
    weights = [value for name, value in model.named_parameters() if name in wanted]
    for weight in weights:
        weight.requires_grad_(True)
    peak = 0.5 * arm.plans[1].learning_rates.full.value
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0)
    order = training.training_order(validation.training, count=16, seed=1)
    model.train()
    for step in range(4):
        rate = peak * (step / 1 if step < 1 else (4 - step) / 3)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = order[4 * step : 4 * step + 4]
        losses = []
        for item in batch:
            ids = torch.tensor([item.input_ids])
            logits = model(input_ids=ids).logits[0, :-1]
            each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            losses.append(each[torch.tensor(item.counted[1:])])
        optimizer.zero_grad()
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    model.eval()
    expected = validation.sums(model, validation.test)
    assert found.sums == pytest.approx(expected, rel=2e-5)


def test_divergence_is_said_and_written_as_null(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(validation: Any, wanted: Training, **given: Any) -> Any:
        outcome = made_up(validation, wanted, **given)
        if wanted.arm != "matched" or wanted.seed != 1:
            return outcome
        return replace(outcome, curve=(math.nan,) * 3, sums=(math.nan,) * len(outcome.sums))

    monkeypatch.setattr(running, "train", broken)
    found = validate(desk, desk / "diverged")
    assert found.code == 0, found.err
    assert "LoRA with as many trained parameters diverged" in found.out
    content = json.loads((desk / "diverged" / "validation.json").read_text())
    assert content["arms"]["matched"]["loss"]["value"] is None
    assert content["arms"]["plan"]["loss"]["value"] > 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--steps", "1"), 2, "--steps is 1"),
        (("--seeds", "1"), 2, "--seeds is 1"),
        (("--seed", "-1"), 2, "--seed is -1"),
        (("--held-out", "1.5"), 2, "--held-out is 1.5"),
        (("--batch-size", "0"), 2, "--batch-size is 0"),
        (("--data", "none"), 2, "--data none has nothing to train on"),
        (("--plan", "missing.json"), 3, "missing.json"),
        (("--samples", "5"), 3, "too few"),
        (("--resume",), 2, "no unfinished run"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_clear_error(
    desk: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    found = validate(desk, desk / "wrong", *options)
    assert found.code == code
    assert said in found.message
    assert not (desk / "wrong").exists()


def test_other_models_are_refused_and_other_weights_noted(desk: Path) -> None:
    save_model(desk / "gpt2", model=FAMILIES["gpt2"].build())
    with pytest.raises(ModelError, match="plan was made for"):
        prepared(desk, "gpt2")
    save_model(desk / "other", model=FAMILIES["llama"].build(seed=1))
    notes = " ".join(prepared(desk, "other").notes)
    assert "weights of this model are not those" in notes
    assert not prepared(desk).notes


@pytest.mark.usefixtures("tried")
def test_results_are_not_overwritten(desk: Path) -> None:
    before = (desk / "out" / "validation.json").read_bytes()
    found = validate(desk, desk / "out")
    assert found.code == 2
    assert "validation.json" in found.message
    assert (desk / "out" / "validation.json").read_bytes() == before


def test_missing_trainer_is_named(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trl" else name)
    found = validate(desk, desk / "no-trl")
    assert found.code == 2
    assert "trl is not installed" in found.message
    assert "pip install 'hlscore[trl]'" in found.message
