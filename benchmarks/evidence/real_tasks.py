"""Tasks for a real model: families of reasoning-gym with short questions.

`python benchmarks/evidence/real_tasks.py` writes every family once to `benchmarks/.models/real`
as compressed JSON lines, which travel to machines without reasoning-gym.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from bases import MODELS

FOLDER = MODELS / "real"
SIZES = {"test": 512, "tuning": 256, "train": 6000}
# Tokens of a prompt with its answer; longer examples are left out.
LONGEST = 128
SEED = 20261127

Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of questions."""

    pattern: str  # finds the essential parts of a question
    prompt: str  # the prompt that is made of those parts
    options: Mapping[str, Any] = field(default_factory=dict)  # of the data set of reasoning-gym


FAMILIES: dict[str, Family] = {
    "ab": Family(pattern=r"program:\n\n(.*)\n\nReturn", prompt="A::B program: {}"),
    "base_conversion": Family(
        pattern=r"Now, convert (.*)",
        prompt="Convert {}",
        options={"min_value": 100, "max_value": 20_000},
    ),
    "binary_matrix": Family(
        pattern=r"matrix below:\n(.*)",
        prompt="Distance to the nearest 0 of each cell:\n{}",
        options={"max_n": 5, "p_zero": 0.2},
    ),
    "bitwise_arithmetic": Family(pattern=r"value\.\n(.*)", prompt="{}", options={"difficulty": 1}),
    "chain_sum": Family(
        pattern=r"problem: (.*)",
        prompt="{}",
        options={"min_terms": 3, "max_terms": 4, "min_digits": 3, "max_digits": 5},
    ),
    "decimal_chain_sum": Family(
        pattern=r"problem: (.*)", prompt="{}", options={"min_terms": 2, "max_terms": 3}
    ),
    "fraction_simplification": Family(
        pattern=r"fraction (\S+) to", prompt="Simplify {}", options={"styles": ("plain",)}
    ),
    "lcm": Family(
        pattern=r"numbers: (.*)", prompt="Least common multiple of {}", options={"max_value": 1000}
    ),
    "letter_jumble": Family(
        pattern=r"these words: (.*)",
        prompt="Unscramble: {}",
        options={"min_words": 2, "max_words": 4, "max_word_len": 12},
    ),
    "number_sorting": Family(
        pattern=r"in (\w+) order: ([^\n]*)",
        prompt="Sort in {} order: {}",
        options={"min_numbers": 4, "max_numbers": 7},
    ),
    "polynomial_multiplication": Family(
        pattern=r": ([^\n]*)\nWhen",
        prompt="Expand {}",
        options={"max_terms": 3, "max_polynomials": 2, "max_value": 30},
    ),
    "prime_factorization": Family(
        pattern=r"factorization of (\d+)",
        prompt="Prime factors of {}",
        options={"min_value": 1000, "max_value": 30_000},
    ),
    "products": Family(
        pattern=r"multiplication: (.*)\. Give",
        prompt="{} =",
        options={"min_digits": 2, "max_digits": 4},
    ),
    "rotate_matrix": Family(
        pattern=r"below by (\d+) degrees clockwise:\n(.*)",
        prompt="Rotate by {} degrees clockwise:\n{}",
        options={"min_n": 3, "max_n": 4},
    ),
    "spell_backward": Family(
        pattern=r"\): (.*)", prompt="Spell backward: {}", options={"max_word_len": 12}
    ),
    "spiral_matrix": Family(
        pattern=r"spiral order\?\n(.*)",
        prompt="Spiral order of\n{}",
        options={"min_n": 3, "max_n": 5},
    ),
    "time_intervals": Family(
        pattern=r"^(.*)$", prompt="{}", options={"task_types": ["time_seconds"]}
    ),
    "word_sequence_reversal": Family(
        pattern=r"words: (.*)", prompt="Reverse: {}", options={"min_words": 4}
    ),
    "word_sorting": Family(
        pattern=r"in (\w+) order .*: (.*)",
        prompt="Sort in {} order: {}",
        options={"min_words": 4, "max_words": 7},
    ),
}


def draw(name: str, tokenizer: Any, sizes: Mapping[str, int] = SIZES) -> dict[str, list[Row]]:
    """Different examples of a family for each split.

    Args:
        name: The family.
        tokenizer: Counts tokens.
        sizes: Examples of each split; the last one is smaller where the family has too few.

    Returns:
        Rows of each split; no prompt comes twice.
    """
    import reasoning_gym

    family, wanted = FAMILIES[name], sum(sizes.values())
    items = reasoning_gym.create_dataset(name, seed=SEED, size=4 * wanted, **family.options)
    rows: dict[str, Row] = {}
    for item in items:
        found = re.search(family.pattern, item["question"], re.DOTALL)
        if found is None:
            raise ValueError(f"{name} asks in another way: {item['question']}")
        prompt = family.prompt.format(*(part.strip() for part in found.groups())) + "\n"
        row = {"prompt": prompt, "completion": " " + item["answer"]}
        if len(tokenizer(prompt + row["completion"])["input_ids"]) < LONGEST:
            rows.setdefault(prompt, row)
        if len(rows) == wanted:
            break
    kept, splits = list(rows.values()), {}
    for split, size in sizes.items():
        splits[split], kept = kept[:size], kept[size:]
    return splits


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """Where a family lies."""
    return folder / f"{name}.jsonl.gz"


def write(name: str, splits: Mapping[str, Sequence[Row]], folder: Path = FOLDER) -> Path:
    """Write the examples of a family; equal examples are equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"split": split, **row}) for split, rows in splits.items() for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    path_of(name, folder).write_bytes(gzip.compress(content, mtime=0))
    return path_of(name, folder)


def read(name: str, folder: Path = FOLDER) -> dict[str, list[Row]]:
    """The examples of a family by split.

    Raises:
        SystemExit: Nobody wrote them.
    """
    if not path_of(name, folder).exists():
        raise SystemExit(
            f"{path_of(name, folder)} is missing. Run python benchmarks/evidence/real_tasks.py."
        )
    splits: dict[str, list[Row]] = {}
    for line in gzip.decompress(path_of(name, folder).read_bytes()).decode().splitlines():
        row = json.loads(line)
        splits.setdefault(row.pop("split"), []).append(row)
    return splits


def main() -> None:
    """Write what is missing and describe it."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "smollm2")
    parser.add_argument("--task", choices=tuple(FAMILIES), action="append")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    for name in options.task or FAMILIES:
        if not path_of(name).exists():
            write(name, draw(name, tokenizer))
        splits = read(name)
        prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in splits["tuning"]]
        answers = [len(tokenizer(row["completion"])["input_ids"]) for row in splits["tuning"]]
        print(
            f"{name:26} {len(splits['train'])} examples, prompt {median(prompts):.0f} tokens, "
            f"answer {mean(answers):.1f}, {path_of(name).stat().st_size / 1e6:.2f} MB  "
            f"{splits['test'][0]['prompt']!r}{splits['test'][0]['completion']!r}",
            flush=True,
        )


if __name__ == "__main__":
    main()
