"""The whole way on a real model: SmolLM2-135M-Instruct and one task of reasoning-gym.

`make test-real`, or `python -m pytest benchmarks/real_lane.py`: ranking by gradients and by trials,
sketches against exact sums, bfloat16 against float32, other examples, resuming, training, merging,
`--update`, `validate`. About 10 minutes on 2 cores; not part of `make test`. Needs `make smollm2`
and the task (`evidence/real_tasks.py`). Every figure is in `results/real_lane_DATE.json` as soon as
it is known; figures of earlier runs of the same day stay until they are measured again. Bounds are
far from what was measured: they catch what is broken, and the figures say how good it is.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

import hlscore
from hlscore import apply, merge, param_groups
from hlscore.artifacts.plan_file import read_plan
from hlscore.artifacts.report import read_report
from hlscore.records import ScoreReport

sys.path.insert(0, str(Path(__file__).parent))

from machine import RESULTS, write_result

MODEL = Path(__file__).parent / ".models" / "smollm2"
TASK = Path(__file__).parent / ".models" / "real" / "base_conversion.jsonl.gz"
EXAMPLES, RANK = 32, 8
MODULES, TENTH = 210, 21
MOVEMENTS = ("gradient", "trial")
STEPS = 3
# Settings of every run, for the command line and for Python.
OPTIONS = ("--samples", "0", "-r", str(RANK), "--no-checkpointing")
SETTINGS: dict[str, Any] = {"samples": 0, "rank": RANK, "checkpointing": False}

pytestmark = pytest.mark.skipif(
    not (MODEL.exists() and TASK.exists()),
    reason="Run make smollm2 and python benchmarks/evidence/real_tasks.py --task base_conversion.",
)


@dataclass
class Figures:
    """What was measured, on the disk after every addition."""

    sections: dict[str, Any] = field(default_factory=dict)  # figures by name of the test

    def add(self, name: str, **found: Any) -> None:
        """Write the figures of a test down."""
        self.sections[name] = found
        content = {
            "model": MODEL.name, "task": TASK.name.partition(".")[0], "examples": EXAMPLES,
            "rank": RANK, "figures": self.sections,
        }  # fmt: skip
        print(name, found, write_result("real_lane", content), flush=True)


@pytest.fixture(scope="module")
def figures() -> Figures:
    """Figures, with those of an earlier run of today."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    path = RESULTS / f"real_lane_{today}.json"
    return Figures(json.loads(path.read_text())["figures"] if path.exists() else {})


@dataclass(frozen=True, kw_only=True)
class Lane:
    """What the tests share."""

    folder: Path  # results of the command line
    data: Path  # the examples as a file

    def rank(self, movement: str, out: str, *more: str) -> list[str]:
        """The command line of a run."""
        return [
            sys.executable, "-m", "hlscore", "rank", str(MODEL), "--data", str(self.data),
            *OPTIONS, "--movement", movement, "--estimator", "sketch",
            "-o", str(self.folder / out), *more,
        ]  # fmt: skip

    def report(self, movement: str) -> ScoreReport:
        """The report of a whole run by sketches, which is done on first use."""
        path = self.folder / movement / "scores.parquet"
        if not path.exists():
            succeed(self.rank(movement, movement))
        return read_report(path)


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """The folder of this run."""
    folder = tmp_path_factory.mktemp("lane")
    data = folder / "train.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows(0)))
    return Lane(folder=folder, data=data)


def rows(start: int) -> list[dict[str, str]]:
    """Examples of the task for training, from a place on."""
    lines = [json.loads(line) for line in gzip.decompress(TASK.read_bytes()).splitlines()]
    found = [line for line in lines if line.pop("split") == "train"]
    return found[start : start + EXAMPLES]


def succeed(command: Sequence[str]) -> str:
    """Run a command that must succeed; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def tokenizer() -> Any:
    """The tokenizer of the model."""
    return AutoTokenizer.from_pretrained(MODEL)


def loaded(dtype: torch.dtype = torch.float32, folder: Path = MODEL) -> Any:
    """A fresh model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def scored(movement: str, *, start: int = 0, dtype: Any = torch.float32, **more: Any) -> Any:
    """Report of a run in this process, by sketches unless said otherwise."""
    options = {"estimator": "sketch", **SETTINGS, **more}
    return hlscore.rank(
        loaded(dtype), tokenizer(), data=rows(start), movement=movement, **options
    ).report


def hls_of(report: ScoreReport) -> dict[str, float]:
    """`hls` of every candidate."""
    return {row.module: row.hls or 0.0 for row in report.candidates}


def tenth(report: ScoreReport) -> set[str]:
    """The best tenth by `hls`."""
    scores = hls_of(report)
    return set(sorted(scores, key=lambda name: -scores[name])[:TENTH])


def agreement(left: ScoreReport, right: ScoreReport) -> dict[str, float]:
    """Spearman of `hls`, and the share of the best tenth that both have."""
    a, b = hls_of(left), hls_of(right)
    rho = spearmanr([a[name] for name in a], [b[name] for name in a]).statistic
    common = len(tenth(left) & tenth(right)) / TENTH
    return {"spearman_hls": round(float(rho), 4), "tenth_in_common": round(common, 3)}


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_rank(lane: Lane, figures: Figures, movement: str) -> None:
    """All modules are scored, a tenth is chosen, and the model has lost something to learn."""
    report = lane.report(movement)
    above = sum((row.hls_ci_low or 0.0) > 0 for row in report.candidates)
    figures.add(
        f"rank by {movement}", seconds=round(report.run.wall_seconds, 1), above_zero=above,
        mean_loss=report.probes.mean_loss, tokens=report.probes.total_tokens,
    )  # fmt: skip
    assert [row.status for row in report.candidates] == ["scored"] * MODULES
    assert report.probes.examples == EXAMPLES
    assert report.probes.truncated == report.probes.dropped == 0
    # The mean loss of a guess among all 49,152 tokens is 10.8 nats.
    assert 0.1 < report.probes.mean_loss < 10
    assert report.run.scores_updates == (movement == "trial")
    plan = read_plan(lane.folder / movement / "plan.json")
    full = {item.module for item in plan.modules if item.mode == "full"}
    assert len(full) == TENTH
    assert full == tenth(report)


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_sketch_against_exact(lane: Lane, figures: Figures, movement: str) -> None:
    """A sketch of the default size orders modules as exact sums do, within its stated errors."""
    exact, sketch = scored(movement, estimator="exact"), lane.report(movement)
    truth = hls_of(exact)
    rows_of = [row for row in sketch.candidates if row.hls_error]
    covered = [
        abs((row.hls or 0.0) - truth[row.module]) <= 1.96 * (row.hls_error or 0.0)
        for row in rows_of
    ]
    found = agreement(sketch, exact)
    figures.add(
        f"sketch against exact, {movement}", **found, with_errors=len(rows_of),
        covered=round(sum(covered) / len(covered), 3),
        seconds_exact=round(exact.run.wall_seconds, 1),
    )  # fmt: skip
    assert sketch.run.estimator == "sketch"
    assert exact.run.estimator == "exact"
    assert found["spearman_hls"] > 0.8
    # .95 for gradients and .57 for trials, whose updates have flatter spectra; .1 by chance.
    assert found["tenth_in_common"] > {"gradient": 0.7, "trial": 0.3}[movement]
    assert sum(covered) > 0.7 * len(covered)


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_bfloat16_against_float32(lane: Lane, figures: Figures, movement: str) -> None:
    """Weights of 16 bits give nearly the same order."""
    narrow = scored(movement, dtype=torch.bfloat16)
    found = agreement(narrow, lane.report(movement))
    figures.add(f"bfloat16 against float32, {movement}", **found)
    assert narrow.run.dtype == "bfloat16"
    assert found["spearman_hls"] > 0.5
    assert found["tenth_in_common"] > 3 * TENTH / MODULES


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_other_examples(lane: Lane, figures: Figures, movement: str) -> None:
    """Examples that the first run did not see choose some of the same modules again."""
    found = agreement(scored(movement, start=EXAMPLES), lane.report(movement))
    figures.add(f"other examples, {movement}", **found)
    # A tenth of the tenth is in common by chance.
    assert found["tenth_in_common"] > 2 * TENTH / MODULES


@pytest.mark.parametrize("movement", MOVEMENTS)
def test_resume(lane: Lane, figures: Figures, movement: str) -> None:
    """A run that is killed goes on to the same scores and the same plan."""
    whole, out = lane.report(movement), f"{movement}-resumed"
    often = lane.rank(movement, out, "--save-every", "0.001")
    run = subprocess.Popen(often, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    while not any((lane.folder / out).glob(".hlscore-progress-*.safetensors")):
        assert run.poll() is None, "the run ended before it stored any progress"
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (lane.folder / out / "scores.parquet").exists()
    succeed(lane.rank(movement, out, "--resume"))
    again = read_report(lane.folder / out / "scores.parquet")
    figures.add(f"resume, {movement}", equal=again.rows == whole.rows)
    assert again.rows == whole.rows
    plans = [lane.folder / name / "plan.json" for name in (movement, out)]
    assert plans[0].read_bytes() == plans[1].read_bytes()


@pytest.fixture(scope="module")
def trained(lane: Lane) -> dict[str, Any]:
    """The plan of gradients, trained for a few steps, and what the model was before."""
    lane.report("gradient")
    plan = read_plan(lane.folder / "gradient" / "plan.json")
    model = apply(loaded(), plan)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wanted = {name for name, value in model.named_parameters() if value.requires_grad}
    batch = encoded()
    optimizer = torch.optim.AdamW(param_groups(model, plan))
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    merged = merge(model)
    merged.save_pretrained(lane.folder / "merged")
    tokenizer().save_pretrained(lane.folder / "merged")
    return {
        "plan": plan, "losses": losses, "wanted": wanted, "moved": moved, "batch": batch,
        "logits": logits,
    }  # fmt: skip


def encoded() -> dict[str, torch.Tensor]:
    """Eight examples as one right-padded batch whose loss is on the answers."""
    items = []
    for row in rows(0)[:8]:
        prompt = tokenizer()(row["prompt"])["input_ids"]
        answer = [*tokenizer()(row["completion"])["input_ids"], tokenizer().eos_token_id]
        items.append((prompt + answer, [-100] * len(prompt) + answer))
    longest = max(len(ids) for ids, _ in items)

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([item + [value] * (longest - len(item)) for item in lists])

    return {
        "input_ids": padded([ids for ids, _ in items], 0),
        "attention_mask": padded([[1] * len(ids) for ids, _ in items], 0),
        "labels": padded([labels for _, labels in items], -100),
    }


def test_training(figures: Figures, trained: dict[str, Any]) -> None:
    """Exactly what the plan names moves, and the loss on the batch falls."""
    losses = trained["losses"]
    figures.add("training", losses=[round(loss, 4) for loss in losses], moved=len(trained["moved"]))
    # Every module has two factors, or one weight in full.
    assert len(trained["wanted"]) == 2 * (MODULES - TENTH) + TENTH
    assert trained["moved"] == trained["wanted"]
    assert losses[-1] < losses[0]


def test_merge(lane: Lane, figures: Figures, trained: dict[str, Any]) -> None:
    """The merged model, read from the disk, computes what the wrapped one did."""
    model, batch = loaded(folder=lane.folder / "merged"), trained["batch"]
    with torch.no_grad():
        logits, base = model(**batch).logits, loaded()(**batch).logits
    kept = batch["attention_mask"].bool()
    wrong = (logits - trained["logits"])[kept].abs().max().item()
    moved = (base - trained["logits"])[kept].abs().max().item()
    figures.add("merge", largest_difference=wrong, largest_change_by_training=moved)
    # 6e-5 is rounding of float32 through 30 layers; one of 210 modules missed would be far more.
    assert moved > 0.1
    assert wrong < 1e-3 * moved


def test_update(lane: Lane, figures: Figures, trained: dict[str, Any]) -> None:
    """Ranking by the trained copy chooses the modules that were trained in full: LoRA leaves none.

    An update of LoRA has the rank of its factors, so that its tail at that rank is rounding.
    """
    if "--update" not in succeed([sys.executable, "-m", "hlscore", "rank", "--help"]):
        pytest.skip("rank has no option --update.")
    out = lane.folder / "update"
    succeed(
        [sys.executable, "-m", "hlscore", "rank", str(MODEL), "--update",
         str(lane.folder / "merged"), "-r", str(RANK), "-o", str(out)]
    )  # fmt: skip
    report = read_report(out / "scores.parquet")
    full = {item.module for item in trained["plan"].modules if item.mode == "full"}
    tails = {row.module: row.tail or 0.0 for row in report.candidates}
    least, most = min(tails[name] for name in full), max(tails[n] for n in tails if n not in full)
    figures.add("update", least_tail_in_full=least, largest_tail_of_lora=most)
    assert report.run.scores_updates
    assert least > 10 * most


def test_validate(lane: Lane, figures: Figures) -> None:
    """A trial of few steps ends with a loss for every arm; so few say nothing about the plan."""
    lane.report("gradient")
    out, began = lane.folder / "validate", time.monotonic()
    succeed(
        [sys.executable, "-m", "hlscore", "validate", str(MODEL),
         "--plan", str(lane.folder / "gradient" / "plan.json"), "--data", str(lane.data),
         "--samples", "0", "--steps", "2", "--batch-size", "4", "--seeds", "2", "--no-full",
         "-o", str(out)]
    )  # fmt: skip
    found = json.loads((out / "validation.json").read_text())
    losses = {name: arm["loss"]["value"] for name, arm in found["arms"].items()}
    figures.add("validate", seconds=round(time.monotonic() - began, 1), losses=losses)
    assert len(losses) >= 4
    assert all(0 < loss < 10 for loss in losses.values())
