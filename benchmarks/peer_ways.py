"""Which other ways are there to score modules? hlscore's and its peers', each one function.

`python benchmarks/peers.py` times them. Every way takes the same job (a model of its own, the same
batches, the same rank) and gives one number per module that it scores; it raises when it cannot do
its work or when a library skipped part of it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from models import score, settings_for
from torch.nn import functional
from transformers import PreTrainedModel

from hlscore.inputs.examples import cut
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.units import Batch, ProbeExample, ProbeSet, by_length, collate
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings

# --- what a way gets and gives --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What each way gets."""

    model: PreTrainedModel  # a copy of the model that nothing else uses
    probes: ProbeSet  # both halves of the probes
    halves: tuple[tuple[Batch, ...], ...]  # batches of each half, on the device of the model
    modules: tuple[Candidate, ...]  # every candidate weight
    rank: int  # LoRA rank
    batch_size: int  # examples per batch, at most
    rounds: int  # how often EVA, which goes on until its components hold still, may use a batch

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Batches of both halves."""
        return tuple(chain.from_iterable(self.halves))

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Weight parameter of each candidate by module name."""
        return {item.module: self.model.get_parameter(item.parameter) for item in self.modules}

    def linear_names(self) -> list[str]:
        """Names of candidates that are a module of a type PEFT can put a plain adapter on."""
        found = dict(self.model.named_modules())
        names = (item.module for item in self.modules if item.module in found)
        return [name for name in names if type(found[name]).__name__ in {"Linear", "Conv1D"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a way found."""

    scores: Mapping[str, float]  # one number per weight that it scores, by module name
    # Proof of the work done, for the result file.
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""  # the part of it that belongs in the table
    complete: bool = True  # whether it came to its end; if not, its time is a lower bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to score."""

    name: str  # name in the table
    what: str  # what its numbers are
    gradients: bool  # whether it computes gradients
    run: Callable[[Job], Outcome]  # does it


def make_job(
    model: PreTrainedModel, probes: ProbeSet, *, rank: int, batch_size: int, rounds: int = 3
) -> Job:
    """Batch the probes the way hlscore does: batches never cross its groups."""
    device = model.get_input_embeddings().weight.device

    def batches(group: tuple[ProbeExample, ...]) -> Iterator[Batch]:
        for examples in cut(by_length(group), batch_size):
            yield collate(examples, pad_token_id=probes.pad_token_id, device=device)

    return Job(
        model=model,
        probes=probes,
        halves=tuple(
            tuple(chain.from_iterable(batches(group) for group in half)) for half in probes.halves
        ),
        modules=candidates_of(find_modules(model, CandidateSettings())),
        rank=rank,
        batch_size=batch_size,
        rounds=rounds,
    )


# --- hlscore ----------------------------------------------------------------------------------


def hlscore_scores(
    model: PreTrainedModel,
    probes: ProbeSet,
    estimator: str,
    bootstrap: bool,
    *,
    rank: int,
    batch_size: int,
) -> dict[str, float]:
    """Score every candidate with hlscore, without recomputing activations, like the other ways."""
    name = model.config.name_or_path or type(model).__name__
    settings = settings_for(
        name, rank, batch_size=batch_size, checkpointing=False, estimator=estimator,
        bootstrap=200 if bootstrap else 0,
    )  # fmt: skip
    report = score(model, probes, settings).report
    return {row.module: row.hls for row in report.rows if row.hls is not None}


def _hlscore(estimator: str, bootstrap: bool) -> Way:
    def run(job: Job) -> Outcome:
        scores = hlscore_scores(
            job.model, job.probes, estimator, bootstrap, rank=job.rank, batch_size=job.batch_size
        )
        return Outcome(scores=scores)

    suffix = "" if bootstrap else ", no errors"
    what = "hls with standard errors" if bootstrap else "hls"
    return Way(name=f"hlscore {estimator}{suffix}", what=what, gradients=True, run=run)


# --- gradients the obvious way ----------------------------------------------------------------


def _backward(model: PreTrainedModel, some: Iterable[Batch], tokens: int) -> None:
    """Add the gradient of the mean loss over `tokens` counted tokens to `.grad`."""
    for batch in some:
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        following = functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
        loss = functional.cross_entropy(
            logits.flatten(0, 1).float(), following.flatten(), reduction="sum"
        )
        (loss / tokens).backward()


def _counted(some: Iterable[Batch]) -> int:
    return sum(int((batch.labels[:, 1:] != -100).sum()) for batch in some)


def _weight_gradients(job: Job, some: tuple[Batch, ...]) -> dict[str, torch.Tensor]:
    """Mean gradient of every candidate weight, in the dtype of the weight."""
    weights = job.weights()
    job.model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    _backward(job.model, some, _counted(some))
    missing = [name for name, weight in weights.items() if weight.grad is None]
    if missing:
        raise RuntimeError(f"no gradient reached {missing[0]}")
    return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def plain_pass(job: Job) -> Outcome:
    """Forward and backward with a gradient for every candidate weight; nothing is scored."""
    gradients = _weight_gradients(job, job.batches)
    return Outcome(scores={}, details={"gradients": len(gradients)}, note="scores nothing")


def gradient_svd(job: Job) -> Outcome:
    """Tail energy of every weight gradient from all of its singular values, in float32."""
    scores = {}
    for name, gradient in _weight_gradients(job, job.batches).items():
        energies = torch.linalg.svdvals(gradient.float()).square()
        scores[name] = float(energies[..., job.rank :].sum())
    return Outcome(scores=scores)


def half_svd(job: Job) -> Outcome:
    """The cross-fitted tail, hlscore's own score, from full SVDs of both half gradients."""
    first, second = (_weight_gradients(job, half) for half in job.halves)
    scores = {}
    for name in list(first):
        pair = (first.pop(name).float(), second.pop(name).float())
        halved = [_outside(*pair, job.rank), _outside(*reversed(pair), job.rank)]
        scores[name] = sum(halved) / 2
    return Outcome(scores=scores)


def _outside(own: torch.Tensor, other: torch.Tensor, rank: int) -> float:
    """`<A - A_r, B>`, summed over the matrices."""
    left, values, right = torch.linalg.svd(own, full_matrices=False)
    head = (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
    return float(((own - head) * other).sum())


# --- PEFT -------------------------------------------------------------------------------------


def _lora_config(job: Job, **options: Any) -> Any:
    from peft import LoraConfig

    names = job.linear_names()
    if not names:
        raise RuntimeError("no candidate is a linear layer")
    return LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=names, **options)


def _estimate_loraga(job: Job) -> tuple[Any, dict[str, float]]:
    """Run PEFT's gradient estimation; gives its config and `||G||_F^2` of the mean gradient."""
    from peft import preprocess_loraga
    from peft.tuners.lora.config import LoraGAConfig

    config = _lora_config(job, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    tokens = _counted(job.batches)

    def train_step() -> None:
        job.model.eval()  # PEFT turns dropout on; the other ways run without.
        _backward(job.model, job.batches, tokens)

    preprocess_loraga(job.model, config, train_step)
    energies = {}
    for name in job.linear_names():
        gradient = getattr(job.model.get_submodule(name), "_peft_loraga_grad", None)
        if gradient is None:
            raise RuntimeError(f"PEFT filled no gradient of {name}")
        # PEFT divides the sum over backward passes by their number; ours is a mean already.
        energies[name] = float((gradient.float() * len(job.batches)).square().sum())
    if not all(0 < energy < float("inf") for energy in energies.values()):
        raise RuntimeError("PEFT filled a gradient of zeros or without finite numbers")
    return config, energies


def lora_ga(job: Job) -> Outcome:
    """PEFT's LoRA-GA: gradient estimation alone, as energies."""
    _, energies = _estimate_loraga(job)
    return Outcome(scores=energies, details={"gradients_filled": len(energies)})


def lora_ga_init(job: Job) -> Outcome:
    """PEFT's LoRA-GA: gradient estimation and the adapters made from it."""
    from peft import get_peft_model

    config, energies = _estimate_loraga(job)
    adapted = get_peft_model(job.model, config)
    parts = {name: part for name, part in adapted.named_parameters() if ".lora_B." in name}
    made = sum(bool(part.any()) for part in parts.values())
    if made != len(energies):
        raise RuntimeError(f"PEFT initialised {made} of {len(energies)} adapters")
    return Outcome(scores=energies, details={"adapters_made": made})


class _StopEvaError(Exception):
    """EVA has used the rounds it may use."""


def eva(job: Job) -> Outcome:
    """PEFT's EVA: ranks by explained variance of the inputs, batches repeated till they hold."""
    from peft import EvaConfig, get_eva_state_dict

    config = _lora_config(job, init_lora_weights="eva", eva_config=EvaConfig())
    loader = [
        {"input_ids": b.input_ids, "attention_mask": b.attention_mask, "labels": b.labels}
        for b in job.batches
    ]
    passes = 0

    def forward(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
        nonlocal passes
        if passes > job.rounds * len(loader):
            raise _StopEvaError
        passes += 1
        model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )

    printed, ranks = io.StringIO(), {}
    with contextlib.redirect_stdout(printed), contextlib.suppress(_StopEvaError):
        found = get_eva_state_dict(
            job.model, loader, config, forward_fn=forward, show_progress_bar=False
        )
        ranks = {name: float(len(components)) for name, components in found.items()}
    # A hook is left behind on every layer whose components still move.
    left = sum(len(module._forward_hooks) for module in job.model.modules())
    # The first pass only finds out which layers share their input.
    details = {
        "converged": bool(ranks),
        "modules_still_moving": left,
        "forward_passes": passes,
        "updates_skipped": printed.getvalue().count("skipping SVD"),
        "ranks": [min(ranks.values()), max(ranks.values())] if ranks else None,
        "rank_sum": sum(ranks.values()),
    }
    state = "converged in" if ranks else f"inputs of {left} modules NOT converged, stopped after"
    note = f"{state} {passes} passes over {len(loader)} batches"
    return Outcome(scores=ranks, details=details, note=note, complete=bool(ranks))


# --- weights alone ----------------------------------------------------------------------------


def kappa(job: Job) -> Outcome:
    """PEFT's KappaTune scan: order by condition number of the weights."""
    from peft import find_kappa_target_modules

    found = find_kappa_target_modules(job.model, top_p=1.0, show_progress=False)
    names = [*(found["target_modules"] or ()), *(found["target_parameters"] or ())]
    known = {item.module for item in job.modules}
    # PEFT gives an order in each of its two lists, not the numbers.
    places = {name: float(place) for place, name in enumerate(names) if name in known}
    others = [name for name in names if name not in known]
    note = f"also decomposes {', '.join(others)}" if others else ""
    if not places:
        raise RuntimeError(f"PEFT scans none of the candidates, only: {others or 'nothing'}")
    return Outcome(scores=places, details={"other_weights": others}, note=note)


def spectrum_snr(job: Job) -> Outcome:
    """Spectrum's signal-to-noise ratio from all singular values of every weight."""
    scores = {}
    for item, weight in zip(job.modules, job.weights().values(), strict=True):
        values = torch.linalg.svdvals(weight.detach().float()).reshape(item.matrices, -1)
        quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device), dim=-1)
        sigma = (quartiles[1] - quartiles[0]) / 1.349
        short, long = sorted((item.out_features, item.in_features))
        signal = values > (sigma * (1 + (short / long) ** 0.5))[:, None]
        above, below = (values * signal).sum(-1), (values * ~signal).sum(-1)
        scores[item.module] = float((above / below / values[:, 0]).mean())
    return Outcome(scores=scores)


REFERENCE, FLOOR = "hlscore sketch", "plain pass"
WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        *(
            _hlscore(estimator, errors)
            for estimator in ("sketch", "exact")
            for errors in (True, False)
        ),
        Way(name=FLOOR, what="forward and backward", gradients=True, run=plain_pass),
        Way(name="gradient SVD", what="tail of the gradient", gradients=True, run=gradient_svd),
        Way(name="half SVD", what="hls", gradients=True, run=half_svd),
        Way(name="LoRA-GA", what="gradients (PEFT)", gradients=True, run=lora_ga),
        Way(name="LoRA-GA init", what="adapters (PEFT)", gradients=True, run=lora_ga_init),
        Way(name="EVA", what="ranks from inputs (PEFT)", gradients=False, run=eva),
        Way(name="KappaTune", what="order by condition (PEFT)", gradients=False, run=kappa),
        Way(name="Spectrum", what="snr of the weight", gradients=False, run=spectrum_snr),
    )
}
