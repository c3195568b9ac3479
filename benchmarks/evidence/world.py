"""The synthetic world of the study: a language, facts and list operations, over one vocabulary.

A base model learns the old world from nothing; each fine-tuning task changes one part of it. All
text is words of one vocabulary, so that `hlscore` reads the same examples as the trainings do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
SYMBOLS = tuple(f"s{number}" for number in range(32))
KEYS = tuple(f"k{number}" for number in range(24))
OPERATIONS = ("copy", "reverse", "sort", "next")
FACT, EQUALS = "fact", "="
WORDS = (PAD, BOS, EOS, EQUALS, FACT, *OPERATIONS, *SYMBOLS, *KEYS)
IDS = {word: place for place, word in enumerate(WORDS)}

CHAIN_LENGTH = 31
LIST_LENGTH = 6
CHANGED_STATES = 16
CHANGED_SYMBOLS = 10
# Concentration of the next-word distributions: about four likely words per state.
SPREAD = 0.12

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Encoded examples of one length."""

    ids: torch.Tensor  # token ids [examples, tokens]
    labels: torch.Tensor  # the same, -100 where nothing is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A source of examples that all have the same length."""

    name: str  # what it is called
    batch_size: int  # examples per training step
    # Makes examples, as rows with `text`, or with `prompt` and `completion`.
    draw: Callable[[np.random.Generator, int], list[Row]]
    # Loss in nats per counted token that no model can beat, where it is known.
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is true."""

    chain: np.ndarray  # next-word distributions [32, 32]
    facts: np.ndarray  # two symbols for each pair of keys [24, 24, 2]
    next: np.ndarray  # what follows each symbol at each place of a list [6, 32]


def old_world(seed: int = 0) -> World:
    """The world that base models learn."""
    rng = np.random.default_rng(seed)
    return World(
        chain=rng.dirichlet(np.full(len(SYMBOLS), SPREAD), size=len(SYMBOLS)),
        facts=rng.integers(len(SYMBOLS), size=(len(KEYS), len(KEYS), 2)),
        next=np.tile(np.roll(np.arange(len(SYMBOLS)), -1), (LIST_LENGTH, 1)),
    )


def new_world(seed: int = 0) -> World:
    """The world after the change.

    Half of the states have other followers, a third of the facts are other ones, and ten symbols
    have another one next to them, which ones depends on the place in the list. Where all of a part
    changed, nothing was learned at first, and a plateau tells scores nothing.
    """
    old, rng = old_world(seed), np.random.default_rng(seed + 1)
    chain, facts, following = old.chain.copy(), old.facts.copy(), old.next.copy()
    states = rng.choice(len(SYMBOLS), CHANGED_STATES, replace=False)
    chain[states] = rng.dirichlet(np.full(len(SYMBOLS), SPREAD), size=CHANGED_STATES)
    changed = rng.permutation(len(KEYS) ** 2)[: len(KEYS) ** 2 // 3]
    facts.reshape(-1, 2)[changed] = rng.integers(len(SYMBOLS), size=(len(changed), 2))
    for line in following:
        line[rng.choice(len(SYMBOLS), CHANGED_SYMBOLS, replace=False)] = rng.integers(
            len(SYMBOLS), size=CHANGED_SYMBOLS
        )
    return World(chain=chain, facts=facts, next=following)


def pretraining_tasks(world: World) -> tuple[Task, ...]:
    """What base models are trained on, in turn."""
    return (_chain(world), _facts(world), _operations(world, OPERATIONS))


def fine_tuning_tasks(world: World) -> dict[str, Task]:
    """The tasks of the study, by name."""
    tasks = (_chain(world), _facts(world), _operations(world, ("next",)))
    return {task.name: task for task in tasks}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts `<bos>` in front."""
    core = Tokenizer(models.WordLevel(IDS, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, IDS[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=PAD
    )


def encode(rows: Sequence[Row]) -> Batch:
    """Encode examples of one length; completions end in `<eos>`, and only they are counted."""
    ids, labels = [], []
    for row in rows:
        prompt = [BOS, *row.get("prompt", "").split()]
        counted = row["text"].split() if "text" in row else [*row["completion"].split(), EOS]
        ids.append([IDS[word] for word in (*prompt, *counted)])
        labels.append([-100] * len(prompt) + [IDS[word] for word in counted])
    return Batch(ids=torch.tensor(ids), labels=torch.tensor(labels))


def _chain(world: World) -> Task:
    cumulative = world.chain.cumsum(axis=1)

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        states = rng.integers(len(SYMBOLS), size=count)
        steps = [states]
        for uniform in rng.random((CHAIN_LENGTH - 1, count)):
            states = (cumulative[states] < uniform[:, None]).sum(axis=1).clip(max=len(SYMBOLS) - 1)
            steps.append(states)
        return [{"text": _words(line)} for line in np.stack(steps, axis=1)]

    return Task(name="chain", batch_size=16, draw=draw, floor=_chain_floor(world.chain))


def _facts(world: World) -> Task:
    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        pairs = rng.integers(len(KEYS), size=(count, 2))
        return [
            {"prompt": f"{FACT} {KEYS[a]} {KEYS[b]} {EQUALS} ", "completion": _words(found)}
            for (a, b), found in zip(pairs, world.facts[pairs[:, 0], pairs[:, 1]], strict=True)
        ]

    return Task(name="facts", batch_size=64, draw=draw, floor=0.0)


def _operations(world: World, names: Sequence[str]) -> Task:
    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        chosen = rng.integers(len(names), size=count)
        given = rng.integers(len(SYMBOLS), size=(count, LIST_LENGTH))
        return [
            _listed(names[place], line, _operated(world, names[place], line))
            for place, line in zip(chosen, given, strict=True)
        ]

    name = names[0] if len(names) == 1 else "operations"
    return Task(name=name, batch_size=32, draw=draw, floor=0.0)


def _operated(world: World, name: str, line: np.ndarray) -> np.ndarray:
    if name == "reverse":
        return line[::-1]
    if name == "sort":
        return np.sort(line)
    return world.next[np.arange(len(line)), line] if name == "next" else line


def _listed(name: str, given: np.ndarray, result: np.ndarray) -> Row:
    return {"prompt": f"{name} {_words(given)} {EQUALS} ", "completion": _words(result)}


def _words(places: np.ndarray) -> str:
    return " ".join(SYMBOLS[place] for place in places)


def _chain_floor(chain: np.ndarray) -> float:
    """Entropy of the language in nats per word, the first one of each line uniform."""
    entropy = -(chain * np.log(np.maximum(chain, 1e-300))).sum(axis=1)
    weights = np.full(len(SYMBOLS), 1 / len(SYMBOLS))
    total = float(np.log(len(SYMBOLS)))
    for _ in range(CHAIN_LENGTH - 1):
        total += float(weights @ entropy)
        weights = weights @ chain
    return total / CHAIN_LENGTH
