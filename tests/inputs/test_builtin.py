"""The model and the probes that come with the package."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

from hlscore.flow.audit import held_out_losses
from hlscore.flow.rank import rank_model
from hlscore.inputs.examples import BUILTIN_NEW, builtin_rows, read_examples
from hlscore.inputs.model import load_model
from hlscore.settings import CaptureSettings, DataSettings, ModelSettings, RankSettings
from hlscore.steps import Silent

FOLDER = Path(str(resources.files("hlscore.inputs"))) / "builtin"
RECORDS = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("builtin_model_*.json"))


def test_weights_are_small_and_safe() -> None:
    files = {item.name: item.stat().st_size for item in (FOLDER / "tiny").iterdir()}
    assert files["model.safetensors"] <= 4_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]


def test_probes_are_many_distinct_and_answered() -> None:
    rows = [json.loads(line) for line in (FOLDER / "probes.jsonl").read_text().splitlines()]
    assert len(rows) >= 256
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert all(row["answer"] in row["completion"] for row in rows)
    assert set(Counter(row["kind"] for row in rows)) == {
        "arithmetic", "word_problem", "code", "instruction",
    }  # fmt: skip


def test_new_probes_follow_one_code() -> None:
    """Each word is decoded alike wherever it stands, so that examples teach the code."""
    rows = builtin_rows(BUILTIN_NEW)
    assert len({row["prompt"] for row in rows}) == len(rows) == 320
    meaning: dict[str, str] = {}
    for row in rows:
        words = row["prompt"].split("'")[1].split()
        worked = " ".join(
            f"{word} is {meaning.setdefault(word, code)}."
            for word, code in zip(words, row["answer"].split(), strict=True)
        )
        assert row["completion"] == f"{worked}\nAnswer: {row['answer']}"
    assert len(set(meaning.values())) == len(meaning) == 30


def mean_loss(data: str) -> float:
    """Loss of the built-in model on built-in probes, nats per counted token."""
    model = ModelSettings(model="builtin:tiny", device="cpu")
    found = held_out_losses(model, DataSettings(data=data, samples=0), {})
    return found["losses"]["base"]


def test_model_is_trained_as_the_record_says() -> None:
    loss = mean_loss("builtin:known")
    assert f"{loss:.2f}" in json.dumps(json.loads(RECORDS[-1].read_text()))
    assert loss < 0.5


def test_model_does_not_know_the_new_task() -> None:
    assert mean_loss("builtin:new") > 3


def test_the_order_on_the_new_probes_is_not_noise() -> None:
    settings = RankSettings(
        model=ModelSettings(model="builtin:tiny", device="cpu"),
        data=DataSettings(samples=64),
        capture=CaptureSettings(bootstrap=20, batch_size=16),
    )
    loaded = load_model(settings.model)
    examples = read_examples(settings.data, seed=0)
    found = rank_model(
        loaded.model, loaded.tokenizer, loaded.identity, examples, settings, Silent()
    )
    assert found is not None
    report, plan = found.report, found.plan
    assert report.probes.source == "builtin:new"
    assert len(report.candidates) == 42
    assert sum(row.hls_ci_low > 0 for row in report.candidates) > 21
    assert plan.totals.full_modules == 4
    assert all(row.status == "scored" for row in report.candidates)
