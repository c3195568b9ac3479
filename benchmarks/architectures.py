"""Which architectures does hlscore get right? Every family of transformers, tiny.

Run it with `python benchmarks/architectures.py` for all causal families, with `--multimodal` for
those that read images or sound, too, or with names of families for a few. Each family is held
against what needs no knowledge of hlscore:

- loading (`--multimodal`): a stored checkpoint gives the class, the names and the weights that
  trainers load;

- candidates: the weights inside the blocks that the forward pass multiplies with something, found
  by watching torch's own products;
- gradients: those of the exact estimator against a plain backward pass, one example at a time;
- training: the plan on the model, one step with text, and which parameters moved.

A model that plain torch cannot run on text alone, or that has an encoder for the text, has to be
refused with a reason. A journal in `.models/` keeps what is done: started again, the script goes
on where it stopped.
"""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import tempfile
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import write_result
from models import random_probes
from tiny_architectures import FAMILIES, MULTIMODAL, build, build_multimodal
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers.utils import logging as transformers_logging

import hlscore
from hlscore.errors import HlscoreError
from hlscore.exporters.limits import PEFT_LIMITS, nearest
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sources import weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.model import load_model
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.settings import CandidateSettings, CaptureSettings, ModelSettings

JOURNALS = Path(__file__).parent / ".models"
TOKENIZER = Path(hlscore.__file__).parent / "inputs" / "builtin" / "tiny"
SECONDS = 120
# Gradients in float32, summed in another order.
TOLERANCE = 1e-3

# What marks places of images or sound: 0 is text; some models insist on it in training.
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")

_PRODUCTS = frozenset({
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.addbmm, torch.einsum,
    torch.tensordot, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__,
    torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.addmm, functional.linear, functional.bilinear,
    functional.grouped_mm, torch._grouped_mm,
})  # fmt: skip
_SUMS = frozenset({torch.addmm, torch.baddbmm, torch.addbmm, torch.Tensor.addmm})


@dataclass(kw_only=True)
class Outcome:
    """What came out for one family."""

    family: str  # `model_type` of the configuration
    model: str = ""  # class of the model
    failure: str = ""  # where it stopped and why; empty where everything ran
    refused: str = ""  # what hlscore says of a model that it does not take, rightly
    candidates: int = 0  # candidate modules
    # Weights that are multiplied with something but are no candidates, by the reason that hlscore
    # gives.
    left_out: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)  # the same with a reason that is not true
    # Candidates with a gradient that no product uses.
    wrong: list[str] = field(default_factory=list)
    # Candidates that no gradient reaches in the plain backward pass.
    unreached: list[str] = field(default_factory=list)
    # Largest relative error of a gradient, with one example at a time.
    gradient_error: float | None = None
    batch_error: float | None = None  # the same with batches of three, right padded
    full: int = 0  # modules trained in full
    lora: int = 0  # modules with LoRA
    frozen: int = 0  # candidates that stay frozen
    # What PEFT cannot do as planned, and is done instead.
    changed: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)  # trained parameters that get no gradient
    moved: list[str] = field(default_factory=list)  # parameters that change without being trained
    seconds: float = 0.0  # time it took

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        error = self.gradient_error
        exact = error is not None and error < TOLERANCE
        return exact and not (self.failure or self.missed or self.wrong or self.idle or self.moved)

    @property
    def verdict(self) -> str:
        """`right`, `refused`, `not run` (it stops before hlscore) or `wrong`."""
        if self.failure.startswith(("build", "save and load", "forward and backward")):
            return "not run"
        return "refused" if self.refused else "right" if self.right else "wrong"


class Products(TorchFunctionMode):
    """Remembers which parameters of a model torch multiplies with something."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Views lie in the memory of their parameter; several parameters may share a storage.
        self._owners = sorted(
            (parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes, name)
            for name, parameter in model.named_parameters()
        )
        self.used: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note the parameters among its arguments if it is a product."""
        if func in _PRODUCTS:
            factors = args[1:] if func in _SUMS else args  # the first one is only added
            for item in tree_leaves((factors, kwargs)):
                if isinstance(item, torch.Tensor):
                    before = bisect_right(self._owners, item.data_ptr(), key=itemgetter(0))
                    _, end, name = self._owners[max(before - 1, 0)]
                    if before and item.data_ptr() < end:
                        self.used.add(name)
        return func(*args, **(kwargs or {}))


def examine(family: str) -> Outcome:
    """Hold one causal family against plain torch; a step that fails ends it."""
    outcome = Outcome(family=family)
    with _measured(outcome):
        model = _built(build, outcome)
        _hold_against_torch(model, lambda: build(family), outcome)
    return outcome


def examine_multimodal(family: str) -> Outcome:
    """Hold a checkpoint of a family that reads images or sound against trainers and torch."""
    outcome = Outcome(family=family)
    with tempfile.TemporaryDirectory() as folder, _measured(outcome):
        built = _built(build_multimodal, outcome)
        with _stage("save and load"):
            built.save_pretrained(folder)
            AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
            trained = load_as_trainers(folder)
            _check_same(trained, built)
        reason = ""  # why it cannot be trained with text alone as a causal model
        if trained.config.is_encoder_decoder:
            reason = "encoder-decoder"
        elif not isinstance(trained, GenerationMixin):
            reason = "predicts no next token"
        else:
            try:
                trained(input_ids=torch.arange(2, 14)[None], use_cache=False)
            except Exception as error:
                reason = " ".join(str(error).split())
        if reason:
            with _stage(f"refusal ({reason})"):
                try:
                    rank_tiny(load_model(ModelSettings(model=folder, device="cpu")).model)
                except HlscoreError as error:
                    outcome.refused = str(error).replace(folder, "MODEL")
                    return outcome
                raise AssertionError("hlscore ranks it")
        with _stage("load"):
            model = load_model(ModelSettings(model=folder, device="cpu")).model
            _check_same(model, trained)
        _hold_against_torch(model, lambda: load_as_trainers(folder), outcome)
    outcome.failure = outcome.failure.replace(folder, "MODEL")
    return outcome


def load_as_trainers(folder: str) -> PreTrainedModel:
    """Load the class that config.json names, as TRL's `create_model_from_path` does."""
    (named,) = AutoConfig.from_pretrained(folder).architectures
    model: PreTrainedModel = getattr(transformers, named).from_pretrained(folder)
    return model


def _check_same(model: PreTrainedModel, trained: PreTrainedModel) -> None:
    assert type(model) is type(trained), f"{type(model).__name__}, not {type(trained).__name__}"
    own, others = model.state_dict(), trained.state_dict()
    assert own.keys() == others.keys(), f"other names: {sorted(own.keys() ^ others.keys())[:3]}"
    other = [name for name in own if not torch.equal(own[name], others[name])]
    assert not other, f"other weights: {other[:3]}"


class _StageError(Exception):
    """A step that failed."""


@contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _StageError(text) from error


@contextmanager
def _measured(outcome: Outcome) -> Iterator[None]:
    """Note the time, of which there is a limit, and where a step fails, which and why."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    began = time.perf_counter()
    own = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    except _StageError as error:
        outcome.failure = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, own)
    outcome.seconds = round(time.perf_counter() - began, 1)


def _built(make: Callable[[str], PreTrainedModel], outcome: Outcome) -> PreTrainedModel:
    with _stage("build"):
        model = make(outcome.family)
    outcome.model = type(model).__name__
    return model


def _hold_against_torch(
    model: PreTrainedModel, fresh: Callable[[], PreTrainedModel], outcome: Outcome
) -> None:
    with _stage("forward and backward"):
        products, gradients, probes = plain_gradients(model)
    with _stage("candidates"):
        compare_candidates(model, products, gradients, outcome)
    with _stage("gradients"):
        outcome.gradient_error = gradient_error(model, gradients, probes, batch_size=1)
    with _stage("gradients of batches"):
        outcome.batch_error = gradient_error(model, gradients, probes, batch_size=3)
    with _stage("plan and step"):
        train_one_step(model, fresh(), outcome)


def plain_gradients(model: PreTrainedModel) -> tuple[set[str], dict[str, torch.Tensor], Any]:
    """Run examples one at a time, without hlscore.

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
    model: PreTrainedModel, products: set[str], gradients: dict[str, torch.Tensor], outcome: Outcome
) -> None:
    """Hold the candidates against the products inside the lists of blocks."""
    # Parameters inside lists of modules that are as long as the decoder is deep.
    text = model.config.get_text_config()
    depth = getattr(text, "num_layers_per_stack", None) or getattr(text, "num_hidden_layers", None)
    lists = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and depth in (None, len(module))
    ]  # fmt: skip
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    inside = {
        name for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and any(name.startswith(f"{place}.") for place in outer)
    }  # fmt: skip
    found = find_modules(model, CandidateSettings())
    candidates = {item.parameter: item for item in candidates_of(found)}
    left_out = {item.parameter: item for item in found if item.skipped}
    outcome.candidates = len(candidates)
    for name in sorted(products & inside - set(candidates)):
        item = left_out.get(name)
        reason = item.reason if item else "not listed"
        if item and item.left_out in ("custom", "flat_experts", "tied"):
            outcome.left_out[reason] = outcome.left_out.get(reason, 0) + 1
        else:
            outcome.missed.append(f"{name}: {reason}")
    outcome.wrong = sorted((set(candidates) - products) & set(gradients))
    outcome.unreached = sorted(
        item.module for name, item in candidates.items()
        if name not in gradients or not gradients[name].any()
    )  # fmt: skip


def gradient_error(
    model: PreTrainedModel, expected: dict[str, torch.Tensor], probes: Any, *, batch_size: int
) -> float:
    """Hold the sums of the exact estimator against plain gradients: the largest relative error."""
    chosen = candidates_of(find_modules(model, CandidateSettings()))
    gradients = ExactGradients(chosen, TestMatrices(size=4, seed=0), groups=None)
    sources = weight_sources(model, chosen)
    ProbeRun(
        model=model, probes=probes, gradients=gradients, sources=sources,
        settings=CaptureSettings(batch_size=batch_size),
    ).run()  # fmt: skip
    counts = [sum(half) for half in probes.counts]
    worst = 0.0
    # What cancels out is rounding, whatever computes it.
    floor = 1e-5 * max(float(torch.linalg.vector_norm(item)) for item in expected.values())
    for item in chosen:
        means, _ = gradients.take(item.module, counts)
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


def train_one_step(model: PreTrainedModel, fresh: PreTrainedModel, outcome: Outcome) -> None:
    """Rank and plan one model, apply the plan to another, and train one step."""
    plan, changes = nearest(rank_tiny(model).plan, PEFT_LIMITS)
    outcome.changed = list(changes)
    totals = plan.totals
    outcome.full, outcome.lora = totals.full_modules, totals.lora_modules
    outcome.frozen = totals.frozen_modules
    wrapped = hlscore.apply(fresh, plan)
    trained = {name: item for name, item in wrapped.named_parameters() if item.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(0, 0.05)
    before = {name: item.detach().clone() for name, item in wrapped.named_parameters()}
    wrapped.train()
    torch.manual_seed(0)
    ids = torch.randint(2, 700, (4, 24))
    names = inspect.signature(fresh.forward).parameters
    types = {name: torch.zeros_like(ids) for name in _TOKEN_TYPES if name in names}
    logits = wrapped(input_ids=ids, use_cache=False, **types).logits.float()
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


def _short(names: list[str]) -> str:
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
    first = next(iter(kinds), "")
    return f"{len(names)}: {first}{' ...' if len(kinds) > 1 else ''}" if names else ""


def main() -> None:
    """Run what the journal lacks, print a table, write a dated JSON."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    multimodal = "--multimodal" in asked
    asked = [name for name in asked if name != "--multimodal"]
    name = "architectures_multimodal" if multimodal else "architectures"
    families = tuple(MULTIMODAL) if multimodal else FAMILIES
    journal = JOURNALS / f"{name}.jsonl"
    JOURNALS.mkdir(exist_ok=True)
    lines = journal.read_text().splitlines() if journal.exists() and not asked else []
    done = {item["family"]: Outcome(**item) for item in map(json.loads, lines)}
    for family in asked or families:
        if family in done:
            continue
        done[family] = (examine_multimodal if multimodal else examine)(family)
        outcome = done[family]
        print(f"{family:28}{outcome.verdict}: {outcome.failure or outcome.refused}", flush=True)
        if not asked:
            with journal.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    if asked:
        print(json.dumps([asdict(item) for item in done.values()], indent=2))
        return
    outcomes = [done[family] for family in families if family in done]
    print(markdown(outcomes))
    verdicts = [item.verdict for item in outcomes]
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    rows = [{"verdict": item.verdict} | asdict(item) for item in outcomes]
    print(write_result(name, {"counts": counts, "outcomes": rows}))


def markdown(outcomes: list[Outcome]) -> str:
    """The table of the README: families that need a remark; the others by name."""
    rows = ["| family | candidates | worst gradient | full, LoRA, frozen | remark |",
            "|---|---|---|---|---|"]  # fmt: skip
    plain = []
    for item in outcomes:
        remarks = [
            f"**{item.failure}**" if item.failure else "",
            f"refused: {item.refused}" if item.refused else "",
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
