"""Which architectures does hlscore get right? Every causal family of transformers, tiny.

Run it with `python benchmarks/architectures.py`, or with names of families for a few. Each family
is held against what needs no knowledge of hlscore:

- candidates: the weights inside the blocks that the forward pass multiplies with something, found
  by watching torch's own products;
- gradients: those of the exact estimator against a plain backward pass, one example at a time;
- training: the plan on the model, one step, and which parameters moved.

A journal in `.models/` keeps what is done: started again, the script goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import write_result
from models import random_probes
from tiny_architectures import FAMILIES, build
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

import hlscore
from hlscore.exporters.limits import PEFT_LIMITS
from hlscore.exporters.nearest import nearest
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sources import weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.settings import CandidateSettings, CaptureSettings

JOURNAL = Path(__file__).parent / ".models" / "architectures.jsonl"
TOKENIZER = Path(hlscore.__file__).parent / "inputs" / "builtin" / "tiny"
SECONDS = 120
# Gradients in float32, summed in another order.
TOLERANCE = 1e-3

_PRODUCTS = frozenset({
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.addbmm, torch.einsum,
    torch.tensordot, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__,
    torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.addmm, functional.linear, functional.bilinear,
    functional.grouped_mm, torch._grouped_mm,
})  # fmt: skip
_SUMS = frozenset({torch.addmm, torch.baddbmm, torch.addbmm, torch.Tensor.addmm})


@dataclass(kw_only=True)
class Outcome:
    """What came out for one family.

    Attributes:
        family: `model_type` of the configuration.
        model: Class of the model.
        failure: Where it stopped and why; empty where everything ran.
        candidates: Candidate modules.
        left_out: Weights that are multiplied with something but are no candidates, by the reason
            that hlscore gives.
        missed: The same with a reason that is not true.
        wrong: Candidates with a gradient that no product uses.
        unreached: Candidates that no gradient reaches in the plain backward pass.
        gradient_error: Largest relative error of a gradient, with one example at a time.
        batch_error: The same with batches of three, right padded.
        full: Modules trained in full.
        lora: Modules with LoRA.
        frozen: Candidates that stay frozen.
        changed: What PEFT cannot do as planned, and is done instead.
        idle: Trained parameters that get no gradient.
        moved: Parameters that change without being trained.
        seconds: Time it took.
    """

    family: str
    model: str = ""
    failure: str = ""
    candidates: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    gradient_error: float | None = None
    batch_error: float | None = None
    full: int = 0
    lora: int = 0
    frozen: int = 0
    changed: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        error = self.gradient_error
        exact = error is not None and error < TOLERANCE
        return exact and not (self.failure or self.missed or self.wrong or self.idle or self.moved)


class Products(TorchFunctionMode):
    """Remembers which parameters of a model torch multiplies with something.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Views share the storage of their parameter.
        self._owners = {
            parameter.untyped_storage().data_ptr(): name
            for name, parameter in model.named_parameters()
        }
        self.used: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note the parameters among its arguments if it is a product."""
        if func in _PRODUCTS:
            factors = args[1:] if func in _SUMS else args  # the first one is only added
            for item in tree_leaves((factors, kwargs)):
                if isinstance(item, torch.Tensor):
                    owner = self._owners.get(item.untyped_storage().data_ptr())
                    if owner is not None:
                        self.used.add(owner)
        return func(*args, **(kwargs or {}))


def examine(family: str) -> Outcome:
    """Hold one family against plain torch.

    Args:
        family: `model_type` of its configuration.

    Returns:
        What came out; a step that fails ends it.
    """
    outcome, began = Outcome(family=family), time.perf_counter()
    stage = "build"
    try:
        with _time_limit(SECONDS):
            model = build(family)
            outcome.model = type(model).__name__
            stage = "forward and backward"
            products, gradients, probes = plain_gradients(model)
            stage = "candidates"
            compare_candidates(model, products, gradients, outcome)
            stage = "gradients"
            outcome.gradient_error = gradient_error(model, gradients, probes, batch_size=1)
            stage = "gradients of batches"
            outcome.batch_error = gradient_error(model, gradients, probes, batch_size=3)
            stage = "plan and step"
            train_one_step(model, outcome)
    except Exception as error:
        outcome.failure = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    outcome.seconds = round(time.perf_counter() - began, 1)
    return outcome


def plain_gradients(model: PreTrainedModel) -> tuple[set[str], dict[str, torch.Tensor], Any]:
    """Run examples one at a time, without hlscore.

    Args:
        model: The model.

    Returns:
        Names of the parameters that a product uses, mean gradients by name, and the probes.
    """
    probes = random_probes(model, examples=6, length=(12, 24), groups=2)
    watch, tokens = Products(model), 0
    model.zero_grad()
    for example in probes.sequences:
        ids = torch.tensor([list(example.input_ids)])
        with watch:
            logits = model(input_ids=ids, use_cache=False).logits.float()
        functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        tokens += ids.shape[1] - 1
    gradients = {
        name: parameter.grad / tokens
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return watch.used, gradients, probes


def compare_candidates(
    model: PreTrainedModel,
    products: set[str],
    gradients: dict[str, torch.Tensor],
    outcome: Outcome,
) -> None:
    """Hold the candidates against the products inside the lists of blocks."""
    found = find_modules(model, CandidateSettings())
    candidates = {item.parameter: item for item in candidates_of(found)}
    left_out = {item.parameter: item for item in found if item.skipped}
    outcome.candidates = len(candidates)
    for name in sorted(products & _inside_blocks(model) - set(candidates)):
        item = left_out.get(name)
        reason = item.reason if item else "not listed"
        if item and item.left_out in ("custom", "flat_experts", "tied"):
            outcome.left_out[reason] = outcome.left_out.get(reason, 0) + 1
        else:
            outcome.missed.append(f"{name}: {reason}")
    outcome.wrong = sorted(set(candidates) - products & set(gradients))
    outcome.wrong = [name for name in outcome.wrong if name in gradients]
    outcome.unreached = sorted(
        item.module for name, item in candidates.items()
        if name not in gradients or not gradients[name].any()
    )  # fmt: skip


def _inside_blocks(model: PreTrainedModel) -> set[str]:
    """Parameters inside lists of modules that are as long as the decoder is deep."""
    text = model.config.get_text_config()
    depth = getattr(text, "num_layers_per_stack", None) or getattr(text, "num_hidden_layers", None)
    lists = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and depth in (None, len(module))
    ]  # fmt: skip
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return {
        name for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and any(name.startswith(f"{place}.") for place in outer)
    }  # fmt: skip


def gradient_error(
    model: PreTrainedModel, expected: dict[str, torch.Tensor], probes: Any, *, batch_size: int
) -> float:
    """Hold the sums of the exact estimator against plain gradients: the largest relative error."""
    chosen = candidates_of(find_modules(model, CandidateSettings()))
    gradients = ExactGradients(chosen, TestMatrices(size=4, seed=0), groups=None)
    sources = weight_sources(model, chosen)
    ProbeRun(
        model, probes, gradients, sources, CaptureSettings(batch_size=batch_size),
        on_tokens=lambda _: None,
    ).run()  # fmt: skip
    counts = [sum(half) for half in probes.counts]
    worst = 0.0
    # What cancels out is rounding, whatever computes it.
    floor = 1e-5 * max(float(torch.linalg.vector_norm(item)) for item in expected.values())
    for item in chosen:
        means = gradients.take_means(item.module, counts)
        plain = expected.get(item.parameter)
        size = 0.0 if plain is None else float(torch.linalg.vector_norm(plain))
        if means is None or plain is None or size == 0:
            assert size == 0, f"{item.module} has no gradient"
            assert means is None or all(mean.norm() < floor for mean in means), item.module
            continue
        mean = (means[0] * counts[0] + means[1] * counts[1]) / sum(counts)
        difference = torch.linalg.vector_norm(mean.reshape(plain.shape) - plain)
        worst = max(worst, float(difference) / max(size, floor))
    return worst


def rank_tiny(model: PreTrainedModel) -> hlscore.RankResult:
    """Rank a tiny model with a few built-in probes, a fifth of its modules in full."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return hlscore.rank(
        model, tokenizer, budget=0.2, rank=2, samples=8, max_length=24, estimator="exact"
    )


def train_one_step(model: PreTrainedModel, outcome: Outcome) -> None:
    """Rank, plan, apply, and train one step in training mode."""
    plan, changes = nearest(rank_tiny(model).plan, PEFT_LIMITS)
    outcome.changed = list(changes)
    totals = plan.totals
    outcome.full, outcome.lora = totals.full_modules, totals.lora_modules
    outcome.frozen = totals.frozen_modules
    wrapped = hlscore.apply(build(outcome.family), plan)
    trained = {name: item for name, item in wrapped.named_parameters() if item.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(0, 0.05)
    before = {name: item.detach().clone() for name, item in wrapped.named_parameters()}
    wrapped.train()
    torch.manual_seed(0)
    ids = torch.randint(2, 700, (4, 24))
    logits = wrapped(input_ids=ids, use_cache=False).logits.float()
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0)
    optimizer.step()
    outcome.idle = sorted(
        name for name, item in trained.items() if item.grad is None or not item.grad.any()
    )
    outcome.moved = sorted(
        name for name, item in wrapped.named_parameters()
        if name not in trained and not torch.equal(item, before[name])
    )  # fmt: skip


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    own = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, own)


def _short(names: list[str]) -> str:
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
    first = next(iter(kinds), "")
    return f"{len(names)}: {first}{' ...' if len(kinds) > 1 else ''}" if names else ""


def main() -> None:
    """Run what the journal lacks, print a table, write a dated JSON."""
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    JOURNAL.parent.mkdir(exist_ok=True)
    lines = JOURNAL.read_text().splitlines() if JOURNAL.exists() and not asked else []
    done = {item["family"]: Outcome(**item) for item in map(json.loads, lines)}
    for family in asked or FAMILIES:
        if family in done:
            continue
        done[family] = examine(family)
        outcome = done[family]
        print(f"{family:28}{'right' if outcome.right else outcome.failure or 'wrong'}", flush=True)
        if not asked:
            with JOURNAL.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    if asked:
        print(json.dumps([asdict(item) for item in done.values()], indent=2))
        return
    outcomes = [done[family] for family in FAMILIES if family in done]
    print(markdown(outcomes))
    path = write_result("architectures", {"outcomes": [asdict(item) for item in outcomes]})
    print(path)


def markdown(outcomes: list[Outcome]) -> str:
    """The table of the README: families that need a remark; the others by name."""
    rows = ["| family | candidates | worst gradient | full, LoRA, frozen | remark |",
            "|---|---|---|---|---|"]  # fmt: skip
    plain = []
    for item in outcomes:
        remarks = [
            f"**{item.failure}**" if item.failure else "",
            *(f"{name} {_short(names)}" for name, names in (
                ("**missed**", item.missed), ("**no linear map**", item.wrong),
                ("unreached", item.unreached), ("**trained without gradient**", item.idle),
                ("**moved**", item.moved),
            ) if names),
            *(f"{count} left out as {reason}" for reason, count in item.left_out.items()),
            f"batches off by {item.batch_error:.2g}"
            if (item.batch_error or 0) > TOLERANCE
            else "",
            f"{len(item.changed)} changed for PEFT" if item.changed else "",
        ]  # fmt: skip
        remark = "; ".join(text for text in remarks if text)
        if not remark:
            plain.append(item.family)
            continue
        error = "" if item.gradient_error is None else f"{item.gradient_error:.0e}"
        modes = f"{item.full}, {item.lora}, {item.frozen}" if item.full or item.lora else ""
        rows.append(f"| {item.family} | {item.candidates or ''} | {error} | {modes} | {remark} |")
    return "\n".join([*rows, "", f"Nothing to remark ({len(plain)}): {', '.join(plain)}."])


if __name__ == "__main__":
    main()
