"""Writes the built-in probes that are new to the built-in model: an invented code for words.

Each of 30 words that the model knows stands for another of them.  A prompt gives four words, and
the completion decodes them one by one and repeats the answer.  The code is drawn with a seed, so
nothing but examples tells it; the same words come back in other examples, so it can be learned.
``python benchmarks/builtin_task.py`` writes ``new_probes.jsonl`` into the package.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = (
    "apple", "bird", "cards", "cook", "dog", "door", "egg", "eggs", "fire", "fish",
    "ice", "jar", "jars", "keys", "king", "lamp", "moon", "night", "nuts", "orange",
    "packs", "park", "pens", "river", "stone", "toys", "tree", "van", "water", "year",
)  # fmt: skip
WORDS_PER_EXAMPLE = 4
ASK = ("Decode '{}'.", "What does '{}' stand for in the code?", "Give the code words of '{}'.")
TARGET = Path(__file__).resolve().parent.parent / "hlscore/inputs/builtin/new_probes.jsonl"


def code(seed: int = 20261127) -> dict[str, str]:
    """Returns what each word stands for, never itself."""
    ring = random.Random(seed).sample(WORDS, len(WORDS))
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def examples(count: int, seed: int = 20261128) -> list[dict[str, str]]:
    """Returns examples whose rows of words are distinct."""
    rng, meaning = random.Random(seed), code()
    seen: set[tuple[str, ...]] = set()
    made: list[dict[str, str]] = []
    while len(made) < count:
        words = tuple(rng.sample(WORDS, WORDS_PER_EXAMPLE))
        if words in seen:
            continue
        seen.add(words)
        worked = " ".join(f"{word} is {meaning[word]}." for word in words)
        answer = " ".join(meaning[word] for word in words)
        made.append(
            {
                "prompt": rng.choice(ASK).format(" ".join(words)) + "\n",
                "completion": f"{worked}\nAnswer: {answer}",
                "answer": answer,
                "kind": "code_words",
            }
        )
    return made


def main() -> None:
    """Writes the 320 probes."""
    lines = "".join(json.dumps(example) + "\n" for example in examples(320))
    TARGET.write_text(lines, encoding="utf-8", newline="\n")
    print(TARGET)


if __name__ == "__main__":
    main()
