"""Trains a second small model for benchmarks that compare probe objectives, from nothing.

``python benchmarks/second_model.py`` trains a Qwen3 of 2.6 M parameters on the corpus and with the
tokenizer of the built-in model, offline, and stops before it is finished: it shall answer some of
the built-in probes and fail others, so that groups of sampled answers are mixed.  The files go to
``benchmarks/.models/qwen3-2m`` and a dated record to ``benchmarks/results``.  ``--steps N`` makes a
trial, which needs an ``--out DIR`` of its own.  Other benchmarks call `second_model`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from builtin_corpus import Example, probe_examples
from builtin_model import (
    PACKAGE_DIR,
    ROOT,
    Decoder,
    Settings,
    held_out,
    right_answers,
    save,
    sha256,
    train_and_measure,
)
from machine import describe, parsed, write_result
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

FOLDER = ROOT / "benchmarks" / ".models" / "qwen3-2m"
STEPS = 2400
SEED = 20261201
# The deviation that served the built-in model, scaled to this width: 0.06 x sqrt(128 / 192).
INIT_STD = 0.049
# Answers per prompt when the mixed groups are counted.
GROUP = 8
# Written last: where it is, the training went to its end.
RECORD = "training.json"


def build_model(tokenizer: PreTrainedTokenizerFast, init_std: float) -> Qwen3ForCausalLM:
    """Returns the untrained decoder; the caller seeds torch first."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=48, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=init_std, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="float32",
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def sampled_groups(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, probes: list[Example]
) -> dict[str, float]:
    """Samples a group of answers per probe and counts groups by how many of them are right."""
    rights = [
        sum(right)
        for _, right in right_answers(
            model, tokenizer, probes, do_sample=True, temperature=1.0, top_k=0,
            num_return_sequences=GROUP,
        )
    ]  # fmt: skip
    return {
        "answers_per_group": GROUP,
        "all_wrong": sum(n == 0 for n in rights),
        "mixed": sum(0 < n < GROUP for n in rights),
        "all_right": sum(n == GROUP for n in rights),
        "share_of_answers_right": sum(rights) / (GROUP * len(rights)),
    }


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Seeds torch and makes it deterministic, and leaves it to the caller as it was."""
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(settings.threads)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(settings.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(exact)


def make(folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """Trains the model, saves it in ``folder`` and returns the record of the run."""
    settings = Settings(steps=steps, init_std=INIT_STD, seed=SEED)
    begun = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE_DIR / "tiny")
    probes = probe_examples()
    heldout, taken = held_out(probes, settings)
    used = asdict(settings)
    del used["tokenizer_examples"]  # the tokenizer is there already
    with _alone(settings):
        model = build_model(tokenizer, settings.init_std)
        sets = {"heldout": heldout, "probes": probes}
        measured = train_and_measure(model, tokenizer, sets, taken, settings)
        torch.manual_seed(settings.seed)
        groups = sampled_groups(model, tokenizer, probes)
        save(model, tokenizer, folder, max_bytes=None)
        weights = folder / "model.safetensors"
        record = {
            "settings": used,
            "config": {
                key: value
                for key, value in model.config.to_diff_dict().items()
                if isinstance(value, str | int | float)
            },
            **measured,
            "groups_sampled_at_temperature_1": groups,
            "wall_seconds": round(time.monotonic() - begun, 1),
            "sha256": {weights.name: sha256(weights)},
            "bytes": {weights.name: weights.stat().st_size},
        }
        if folder.resolve() == FOLDER:
            write_result("second_model", record)
        text = json.dumps({"machine": describe(), **record}, indent=2) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    return record


def second_model(folder: Path = FOLDER) -> Path:
    """Returns the folder of the trained model and trains it only where it is not there yet."""
    if not (folder / RECORD).exists():
        make(folder)
    return folder


def main() -> None:
    """Reads the command line, trains and prints the record."""
    options = parsed(
        __doc__,
        out={"type": Path, "default": FOLDER, "help": "where the files go"},
        steps={"type": int, "default": STEPS, "help": "optimizer steps"},
    )
    if options.steps != STEPS and options.out.resolve() == FOLDER:
        raise SystemExit("A trial with other steps needs an --out of its own.")
    print(json.dumps(make(options.out, options.steps), indent=2))


if __name__ == "__main__":
    main()
