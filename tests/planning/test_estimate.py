"""`hlscore estimate`: from a configuration to memory, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from console import hlscore

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
LLAMA, MOE = str(CONFIGS / "llama-3.1-8b"), str(CONFIGS / "qwen3-30b-a3b")
LLAMA_PARAMS = 8_030_261_248
# The published count of LoRA with rank 16 on all linear maps of this model.
LLAMA_LORA = 41_943_040
GIB = 1024**3


def trainings(*arguments: str) -> list[dict[str, Any]]:
    found = hlscore("estimate", *arguments, "--json")
    assert found.code == 0, found.err
    result = json.loads(found.out)["trainings"]
    assert isinstance(result, list)
    return result


def test_the_table_of_the_builtin_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    found = hlscore("estimate", "builtin:tiny", "--gpu", "1GiB")
    assert found.code == 0
    lines = found.out.splitlines()
    starts = ("full ", "LoRA 16 ", "hybrid, smallest 4 ", "hybrid, largest 4 ", "LoRA 16, 4 bit ",
              "hybrid, smallest 4, 4 bit ", "hybrid, largest 4, 4 bit ")  # fmt: skip
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert found.out.count(" fits") == len(starts)
    assert "hlscore rank builtin:tiny --budget 0.1" in lines[-1]
    over = hlscore("estimate", "builtin:tiny", "--gpu", "1MiB").out
    assert over.count("MiB over") == len(starts)


@pytest.mark.parametrize(
    ("options", "per_parameter", "slack"),
    [((), 16, 1), (("--master", "bf16"), 8, 1), (("--optimizer", "sgd"), 8, 1),
     (("--optimizer", "lion"), 12, 1), (("--optimizer", "adamw8bit"), 10, 1.06),
     (("--optimizer", "adafactor"), 8, 1.06)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_full_fine_tuning_of_llama(
    options: tuple[str, ...], per_parameter: int, slack: float
) -> None:
    full = trainings(LLAMA, *options)[0]
    assert full["trained_params"] == LLAMA_PARAMS
    # 8-bit moments have scales, and embeddings keep 32 bits; Adafactor keeps rows and columns.
    least = per_parameter * LLAMA_PARAMS
    assert least <= full["memory"]["state_bytes"] <= slack * least


def test_lora_on_a_packed_base_is_small() -> None:
    by_kind = {(item["kind"], item["base_bits"]): item for item in trainings(LLAMA)}
    lora, packed = by_kind["lora", 16], by_kind["lora", 4]
    assert lora["trained_params"] == packed["trained_params"] == LLAMA_LORA
    assert lora["memory"]["frozen_bytes"] == 2 * LLAMA_PARAMS
    # The published size of the 4-bit checkpoint is 5.7 GB, embeddings and head in 16 bits.
    assert 5.2 * GIB < packed["memory"]["frozen_bytes"] < 5.6 * GIB


@pytest.mark.parametrize("model", [LLAMA, MOE], ids=["llama", "moe"])
def test_every_hybrid_lies_between_the_smallest_and_the_largest(model: str) -> None:
    found = trainings(model, "--rank", "64")
    for bits in (16, 4):
        _, low, high = (item for item in found[1:] if item["base_bits"] == bits)
        assert (low["which"], high["which"]) == ("smallest", "largest")
        assert low["full_modules"] == high["full_modules"] > 0
        assert low["memory"]["total_bytes"] < high["memory"]["total_bytes"]


@pytest.mark.parametrize(("budget", "share"), [("0.1p", 0.1), ("500M", None), ("1p", 1.0)])
def test_a_budget_of_parameters_is_spread(budget: str, share: float | None) -> None:
    _, lora, hybrid, *_ = trainings(MOE, "--budget", budget)
    assert (lora["kind"], hybrid["which"]) == ("lora", "proportional")
    candidates = 29_909_581_824
    share = 5e8 / candidates if share is None else share
    expected = share * candidates + (1 - share) * lora["trained_params"]
    assert hybrid["trained_params"] == pytest.approx(expected, rel=1e-6)


def test_base_and_batch_options() -> None:
    for base, bits in (("8", [16, 8, 8, 8, 4, 4, 4]), ("4", [16, 4, 4, 4])):
        found = trainings("builtin:tiny", "--base", base)
        assert [item["base_bits"] for item in found] == bits
    short, long = (
        trainings("builtin:tiny", "--train-length", length, "--train-batch", batch)
        for length, batch in (("64", "1"), ("128", "2"))
    )
    ratio = long[0]["memory"]["activation_bytes"] / short[0]["memory"]["activation_bytes"]
    assert ratio == pytest.approx(4, rel=0.1)


def test_candidates_can_be_chosen() -> None:
    less = trainings(LLAMA, "--include", "*q_proj", "--exclude", "*.0.*")
    # 31 of 32 layers, 16 x (4096 + 4096) each.
    assert less[1]["trained_params"] == 31 * 16 * 8192
    more = trainings(LLAMA, "--embeddings", "--head")
    assert more[1]["trained_params"] == LLAMA_LORA + 2 * 16 * (4096 + 128256)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("builtin:tiny --budget 24GiB", "Use --gpu 24GiB"),
     ("builtin:tiny --budget 0.001", "less than one module"),
     ("builtin:tiny --gpu many", "--gpu is 'many'"),
     ("builtin:tiny --train-batch 0", "--train-batch is 0"),
     ("builtin:tiny --rank 9999", "--rank is 9999"),
     ("builtin:tiny --include nothing*", "matches none"),
     ("./no-such-folder", "no-such-folder"),
     ("builtin:tiny --base 5", "5")],
)  # fmt: skip
def test_bad_input_gives_one_clear_error(arguments: str, says: str) -> None:
    found = hlscore("estimate", *arguments.split())
    assert found.code in (2, 3)
    assert says in found.message
