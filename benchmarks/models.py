"""Which models and probes do the benchmarks run on? Random ones: nothing is downloaded.

Run it with `python benchmarks/models.py` for a table of the models, counted without building a
weight. The other scripts call `build` for a model with seeded random weights and one of the two
probe makers: `random_probes` (uniform tokens, in which there is nothing to learn: gradients are
noise) and `structured_probes` (a seeded Markov chain, so that gradients share a signal).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from machine import print_table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from hlscore.flow.rank import rank_model
from hlscore.inputs.identity import identify
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit, make_probe_set
from hlscore.records import ProbeSummary
from hlscore.settings import (
    CandidateSettings,
    CaptureSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)
from hlscore.steps import Silent

CONFIGS = Path(__file__).parent / "configs"
VOCABULARY = 8192
# The Markov chain walks over so many tokens: few enough that each transition comes back.
STATES = 256

# Tokens of each example: one length for all, or the smallest and the largest of a uniform draw.
Length = int | tuple[int, int]


def qwen3(*, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Qwen3Config:
    """Shape of a Qwen3 model."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def _qwen3_moe(*, hidden: int, experts: int, intermediate: int, layers: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        moe_intermediate_size=intermediate,
        num_experts=experts,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def _stored(name: str) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(CONFIGS / name, local_files_only=True)


MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    # Only to try a script out.
    "qwen3-tiny": lambda: qwen3(hidden=64, intermediate=160, layers=2, heads=2, kv_heads=1),
    "qwen3-41m": lambda: qwen3(hidden=512, intermediate=1472, layers=12, heads=8, kv_heads=4),
    "qwen3-60m": lambda: qwen3(hidden=640, intermediate=1856, layers=12, heads=10, kv_heads=2),
    "gpt2-124m": lambda: _stored("gpt2"),
    "qwen3-moe-80m": lambda: _qwen3_moe(hidden=384, experts=16, intermediate=384, layers=10),
    # Published shape; needs a GPU.
    "qwen3-8b": lambda: _stored("qwen3-8b"),
}


def build(
    model: str | PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> PreTrainedModel:
    """Build a model with random weights, straight on its device and in its dtype.

    The global random state stays as it was; another kind of device draws other weights.
    """
    place = torch.device(device)
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), place:
        torch.manual_seed(seed)
        config = MODELS[model]() if isinstance(model, str) else model
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_probes(
    model: PreTrainedModel, *, examples: int, length: Length, groups: int = 8, seed: int = 0
) -> ProbeSet:
    """Draw probes of uniform random tokens; all but the first of each example are counted."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, _vocabulary(model), size) for size in _sizes(draw, examples, length)]
    return _probe_set(rows, f"uniform random tokens, seed {seed}", groups, seed)


def structured_probes(
    model: PreTrainedModel,
    *,
    examples: int,
    length: Length,
    groups: int = 8,
    seed: int = 0,
    successors: int = 4,
) -> ProbeSet:
    """Draw probes from a random first-order Markov chain, so that gradients share a signal.

    The chain walks over at most `STATES` tokens of the vocabulary. Each has a few possible
    successors, the n-th with a probability in proportion to 1 / n. All tokens but the first of each
    example are counted.
    """
    draw = np.random.default_rng(seed)
    vocabulary = _vocabulary(model)
    states = min(STATES, vocabulary)
    tokens = draw.choice(vocabulary, states, replace=False)
    follows = np.stack([draw.choice(states, successors, replace=False) for _ in range(states)])
    weights = 1 / np.arange(1, successors + 1)
    sizes = _sizes(draw, examples, length)
    choices = draw.choice(successors, (max(sizes), examples), p=weights / weights.sum())
    walk = [draw.integers(0, states, examples)]
    for choice in choices[1:]:
        walk.append(follows[walk[-1], choice])
    paths = tokens[np.stack(walk, axis=1)]
    rows = [path[:size] for path, size in zip(paths, sizes, strict=True)]
    source = f"Markov chain over {states} tokens, {successors} successors each, seed {seed}"
    return _probe_set(rows, source, groups, seed)


def _vocabulary(model: PreTrainedModel) -> int:
    rows = int(model.get_input_embeddings().weight.shape[0])
    # Some embeddings hold rows for prompts, too, which no output stands for.
    return min(rows, getattr(model.config.get_text_config(), "vocab_size", None) or rows)


def _sizes(draw: np.random.Generator, examples: int, length: Length) -> list[int]:
    low, high = (length, length) if isinstance(length, int) else length
    if examples < 2 or not 2 <= low <= high:
        raise ValueError("Give at least 2 examples of at least 2 tokens.")
    return [int(size) for size in draw.integers(low, high + 1, examples)]


def _probe_set(rows: list[np.ndarray], source: str, groups: int, seed: int) -> ProbeSet:
    kept = [
        ProbeExample(
            input_ids=tuple(int(token) for token in row), counted=(False, *(True for _ in row[1:]))
        )
        for row in rows
    ]
    return make_probe_set(
        [ProbeUnit((item,), item.counted_tokens) for item in kept],
        pad_token_id=0,
        groups=groups,
        seed=seed,
        summary=ProbeSummary(
            source=source, format="text", examples=len(kept), truncated=0, dropped=0
        ),
    )


def settings_for(name: str, rank: int, **capture: Any) -> RankSettings:
    """Settings of a run of the flow, with options of its capture."""
    return RankSettings(
        model=ModelSettings(model=name),
        capture=CaptureSettings(**capture),
        plan=PlanSettings(rank=rank),
    )


class StepClock(Silent):
    """Notes when each step of a run begins."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    def start(self, what: str, total: int, unit: str) -> None:  # noqa: ARG002
        """Note the time, when the device has come so far."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.begun[what] = perf_counter()


def score(
    model: PreTrainedModel,
    probes: ProbeSet,
    settings: RankSettings,
    clock: Silent = Silent(),  # noqa: B008 - it keeps nothing
    **more: Any,
) -> Any:
    """What a run of the flow finds on every candidate; `None` but in the main process."""
    identity = identify(model, settings.model.model, None)
    tokenizer = None  # the probes are tokenized
    return rank_model(model, tokenizer, identity, probes, settings, clock, **more)


def main() -> None:
    """Print the models and what is in them."""
    rows = []
    for name in MODELS:
        model = build(name, device="meta")
        total = sum(parameter.numel() for parameter in model.parameters())
        found = candidates_of(find_modules(model, CandidateSettings()))
        share = sum(item.n_params for item in found) / total
        matrices = sum(item.matrices for item in found)
        kind = type(model).__name__
        rows.append((name, kind, f"{total:,}", len(found), matrices, f"{share:.0%}"))
    heads = ("model", "class", "parameters", "candidate weights", "matrices", "their share")
    print_table(heads, rows)


if __name__ == "__main__":
    main()
