"""Trials: short full-parameter trainings whose weight updates are scored in place of gradients.

A gradient says little about how far a matrix will move: adaptive optimizers divide each matrix's
gradient by its own scale. A trial moves the weights. From the base weights, every candidate is
trained for a few steps on a part of the probes that no other trial sees; the update
`U = W - W_trained` is handed over like a gradient, and the weights are put back bit for bit.
Updates of the first half of the trials are averaged to A, those of the second half to B, and the
cross-fitted tail of both is `hls`: what comes back on other data and no rank r can express. The
random walk that an adaptive optimizer makes of noise does not come back, so it averages to zero.

The optimizers keep no state per weight, so that a gradient can be applied as soon as it appears
and then be freed: `factored` is Adafactor (arXiv 1804.04235) without momentum and with an
absolute learning rate, `sign` is signSGD (arXiv 1802.04434), `rms` scales each matrix's gradient
to a root mean square of 1. In all of them a rate is the root mean square of one step's change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import CaptureError
from hlscore.gradients.capture import GradientCapture, Sources
from hlscore.gradients.exact import ExactGradients
from hlscore.gradients.memory import free_bytes
from hlscore.gradients.passes import counted_log_probs, sends_positions
from hlscore.gradients.probe_run import (
    FLOAT16_LOSS_SCALE,
    checkpointed_blocks,
    is_out_of_memory,
)
from hlscore.gradients.progress import Place, Progress, ProgressFile
from hlscore.gradients.sketch import seeded_generator
from hlscore.gradients.sketched import SketchGradients
from hlscore.inputs.model import input_device
from hlscore.objectives.losses import probe_loss
from hlscore.objectives.preference import PAIR_LOSSES
from hlscore.probes.batches import Batch, collate, cut
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.processes import Processes
from hlscore.settings import CaptureSettings, ObjectiveSettings
from hlscore.steps import Progress as Told

# The search for a rate starts here and goes up or down by this factor while that helps.
FIRST_RATE, RATE_FACTOR, MOST_TRIES = 1e-4, 4.0, 5
_SEARCH_STEPS = 4
# Share of the probes that the search trains on, and again that it measures on.
_SEARCH_SHARE = 1 / 32
_WARM_UP_SHARE = 0.25
_ATTEMPTS = 3

# Module name, gradient float32 [E, p, q], number of the step from 0: a direction of unit scale.
# The gradient may be written over.
Direction = Callable[[str, torch.Tensor, int], torch.Tensor]


def sign_direction(name: str, gradient: torch.Tensor, step: int) -> torch.Tensor:  # noqa: ARG001
    """The sign of each entry (signSGD, arXiv 1802.04434)."""
    return gradient.sign_()


def unit_rms_direction(name: str, gradient: torch.Tensor, step: int) -> torch.Tensor:  # noqa: ARG001
    """The gradient of each matrix, scaled to a root mean square of 1."""
    return gradient.div_(_rms(gradient).clamp(min=1e-30))


def _rms(matrices: torch.Tensor) -> torch.Tensor:
    """Root mean square of each matrix, [E, 1, 1]; makes no copy, as squaring would."""
    size = matrices.shape[-2] * matrices.shape[-1]
    norms: torch.Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    return norms / math.sqrt(size)


class FactoredDirection:
    """The gradient over the root of a second moment that is kept as row and column means.

    Adafactor (Shazeer and Stern, arXiv 1804.04235) without momentum: decay `1 - t^-0.8`, updates
    clipped at a root mean square of 1. State: p + q numbers per matrix [p, q].
    """

    def __init__(self) -> None:
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, name: str, gradient: torch.Tensor, step: int) -> torch.Tensor:
        """Give the direction; see `Direction`."""
        rows, columns = (
            torch.linalg.vector_norm(gradient, dim=side).square() / gradient.shape[side] + 1e-30
            for side in (-1, -2)
        )
        if name in self._moments:
            decay = 1 - (step + 1) ** -0.8
            rows = torch.lerp(rows, self._moments[name][0], decay)
            columns = torch.lerp(columns, self._moments[name][1], decay)
        self._moments[name] = rows, columns
        by_row = (rows / rows.mean(-1, keepdim=True)).rsqrt()
        gradient.mul_(by_row.unsqueeze(-1)).mul_(columns.rsqrt().unsqueeze(-2))
        return gradient.div_(_rms(gradient).clamp(min=1))


def direction_of(optimizer: str) -> Direction:
    """A fresh optimizer by name: `factored`, `sign` or `rms`."""
    directions: dict[str, Callable[[], Direction]] = {
        "factored": FactoredDirection,
        "sign": lambda: sign_direction,
        "rms": lambda: unit_rms_direction,
    }
    return directions[optimizer]()


def round_randomly(
    values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Round to a 16-bit dtype, up or down with the probability that keeps the mean.

    Rounding to the nearest would lose every change below half of a weight's last digit.

    Args:
        values: float32, any shape.
        dtype: `bfloat16` or `float16`; other dtypes are converted as usual.

    Returns:
        The values in the dtype. Below 6e-5 float16 has fewer digits, and the nearest is taken.
    """
    dropped_bits = {torch.bfloat16: 16, torch.float16: 13}.get(dtype)
    if dropped_bits is None:
        return values.to(dtype)
    noise = torch.randint(
        0, 1 << dropped_bits, values.shape, dtype=torch.int32, device=values.device,
        generator=generator,
    )  # fmt: skip
    bits = values.contiguous().view(torch.int32) + noise
    return (bits & -(1 << dropped_bits)).view(torch.float32).to(dtype)


class Mover:
    """Receives gradients and moves the weights by them, one optimizer step after the other.

    Args:
        weights: The weights that are trained, by module name.
        optimizer: `factored`, `sign` or `rms`.
        compensated: Keep what 16-bit weights cannot hold beside them; else they are rounded at
            random.
        seed: Seed of the random rounding.
        processes: This process among those that share each step.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: str,
        *,
        compensated: bool,
        seed: int,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.moved: set[str] = set()
        self._compensated = compensated
        self._residuals: dict[str, torch.Tensor] = {}
        self._weights = weights
        self._direction = direction_of(optimizer)
        self._processes = processes
        self._step = -1
        self._rate = self._share = 0.0
        self._last_part = False
        self._held: dict[str, torch.Tensor] = {}
        self._generators = {
            device: torch.Generator(device).manual_seed(
                seeded_generator(f"{seed}:{optimizer}").initial_seed()
            )
            for device in {weight.device for weight in weights.values()}
        }

    def begin_step(self, rate: float) -> None:
        """Start an optimizer step at a learning rate."""
        self._step, self._rate = self._step + 1, rate

    def begin_part(self, share: float, *, last: bool) -> None:
        """Say what share of the step's loss the next backward pass holds; `last` ends the step."""
        self._share, self._last_part = share, last

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take a gradient; in the last part of a step the weight moves at once.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        whole = gradient.reshape(-1, *gradient.shape[-2:]).float()
        if self._share != 1:
            whole = whole.mul_(self._share)
        if name in self._held:
            whole += self._held.pop(name)
        if self._last_part and self._processes.size == 1:
            self._move(name, whole)
        else:
            self._held[name] = whole

    def end_step(self) -> None:
        """Move the weights whose gradient is still held: of several processes, the sum."""
        for name, gradient in self._processes.add_up(self._held).items():
            self._move(name, gradient)
        self._held.clear()

    @torch.no_grad()
    def _move(self, name: str, gradient: torch.Tensor) -> None:
        weight = self._weights[name]
        step = self._direction(name, gradient, self._step).view(weight.shape)
        if weight.dtype not in (torch.bfloat16, torch.float16):
            weight.add_(step, alpha=-self._rate)
        elif self._compensated:
            wanted = step.mul_(-self._rate).add_(weight)
            if name in self._residuals:
                wanted += self._residuals[name]
            weight.copy_(wanted)
            self._residuals[name] = (wanted - weight).to(weight.dtype)
        else:
            wanted = step.mul_(-self._rate).add_(weight)
            weight.copy_(round_randomly(wanted, weight.dtype, self._generators[weight.device]))
        self.moved.add(name)

    @torch.no_grad()
    def take_back(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """Put a weight back to its base; gives how far it was, base minus weight, in float32."""
        weight = self._weights[name]
        here = base.to(weight.device)
        found = here.to(torch.float32, copy=True).sub_(weight)
        if name in self._residuals:
            found -= self._residuals.pop(name)
        weight.copy_(here)
        return found


class DivergedError(Exception):
    """A loss or a weight is no longer finite."""


class BatchTooLargeError(Exception):
    """A batch did not fit the memory of the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the trials did.

    Attributes:
        rate: Learning rate.
        steps: Optimizer steps of each trial: at most one per example.
        searched: Whether the rate was found rather than given.
        batch_size: Sequences per pass that fitted the memory.
        loss_before: Mean loss of the search's test examples at the base weights; `None` where the
            rate was given.
        loss_after: The same after the search's training at the rate.
        compensated: Whether what 16-bit weights cannot hold was kept beside them; `None` for
            wider weights.
        likelihood: Mean negative log-likelihood of the counted tokens that were seen with the
            base weights, in nats.
    """

    rate: float
    steps: int
    searched: bool
    batch_size: int
    loss_before: float | None
    loss_after: float | None
    compensated: bool | None
    likelihood: float


class TrialRun:
    """Trains from the base weights, once per probe group, and hands every update over.

    Args:
        model: The model; comes back as it was, bit for bit.
        probes: The probe examples: each group of a half is the data of one trial.
        gradients: Receives the updates.
        sources: The weights that are trained.
        settings: Trials, steps, rate, optimizer, batch size, padding, checkpointing.
        objective: The loss that is trained on.
        seed: Seed of the random rounding of 16-bit weights.
        told: Told about the search and the trials.
        processes: This process among those that share each step.
        progress_file: Where progress is stored between trials, if anywhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        probes: ProbeSet,
        gradients: ExactGradients | SketchGradients,
        sources: Sources,
        settings: CaptureSettings,
        objective: ObjectiveSettings,
        *,
        seed: int,
        told: Told,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        progress_file: ProgressFile | None = None,
    ) -> None:
        self._model, self._probes, self._gradients = model, probes, gradients
        self._weights, self._sources = dict(sources.weights), sources
        self._settings, self._objective, self._seed = settings, objective, seed
        self._told, self._processes, self._file = told, processes, progress_file
        self._positions = sends_positions(model, settings.padding_side)
        self._loss = probe_loss(objective)
        self._batch_size = settings.batch_size
        self._place, self._rate = Place(), settings.trial_rate
        self._before: float | None = None
        self._after: float | None = None
        # Negative log-likelihood and tokens seen with the base weights.
        self._nats = self._tokens = 0.0
        self._base: dict[str, torch.Tensor] = {}
        self._compensated = all(processes.gather(_residuals_fit(sources.weights)))
        # The gradients that reach weights go to whoever trains at the moment.
        self._mover = self._new_mover()

    def resume(self) -> None:
        """Go on after the last trial of a stored run."""
        if self._file is None:
            return
        device = input_device(self._model)
        if self._settings.accumulate_on == "host":
            device = torch.device("cpu")
        start = Progress(place=self._place, loss=0.0, batch_size=self._batch_size)
        stored, state = self._file.load(start, device)
        self._place, self._batch_size = stored.place, stored.batch_size
        self._rate = stored.rate or self._rate
        self._nats, self._tokens = stored.loss, stored.tokens
        self._gradients.load(state, number=1)

    def run(self) -> Found:
        """Find a rate where none is given, run every trial, and put the weights back."""
        trials = [
            (half, index, [unit for unit in group if unit.sequences or unit.pair])
            for half, groups in enumerate(self._probes.units)
            for index, group in enumerate(groups)
        ]
        self._check(trials)
        searched = self._settings.trial_rate is None
        with self._base_weights_kept(), torch.enable_grad(), self._captured():
            if self._rate is None:
                self._rate = self._find_rate(trials[0][2], trials[-1][2])
            for attempt in range(_ATTEMPTS):
                try:
                    self._run_trials(trials, self._rate)
                    break
                except DivergedError as error:
                    if attempt + 1 == _ATTEMPTS or not searched:
                        raise _diverges(f"{self._rate:.1e}") from error
                    self._restore()
                    self._rate /= RATE_FACTOR
                    for name in self._weights:
                        self._gradients.forget(name)
                    self._place, self._nats, self._tokens = Place(), 0.0, 0.0
        nats, tokens = self._processes.total([self._nats, self._tokens])
        return Found(
            rate=self._rate,
            steps=min(self._settings.trial_steps, *(len(units) for _, _, units in trials)),
            searched=searched,
            batch_size=self._batch_size,
            loss_before=self._before,
            loss_after=self._after,
            compensated=self._compensated if self._model.dtype.itemsize == 2 else None,
            likelihood=nats / max(tokens, 1.0),
        )

    def _check(self, trials: Sequence[tuple[int, int, list[ProbeUnit]]]) -> None:
        wanted = self._settings.trials
        smallest = min((len(units) for _, _, units in trials), default=0)
        if len(trials) < wanted or smallest < 2:
            usable = sum(len(units) for _, _, units in trials)
            raise CaptureError(
                f"{usable} probe examples with a loss are too few for {wanted} trials of at least "
                "2 optimizer steps.",
                hint="Give more examples (--samples), or use --trials 2 or --movement gradient.",
            )
        for name, weight in self._weights.items():
            if weight.device.type == "cpu" and weight.is_shared():  # type: ignore[no-untyped-call]
                raise CaptureError(
                    f"The weight of '{name}' lies in memory shared with other processes, which "
                    "would see it move.",
                    hint="Load the model in this process alone, or use --movement gradient.",
                )

    @contextmanager
    def _base_weights_kept(self) -> Iterator[None]:
        """Copy the weights, and put them back at the end, whatever happens.

        Copies stay on the device of a weight where they fit it twice, beside what else is kept
        there; others go to the host, in memory that a GPU reads fast.
        """
        weights = self._weights.values()
        roomy = {
            device
            for device in {weight.device for weight in weights}
            if device.type != "cpu" and free_bytes(device) > 2 * _kept_bytes(self._weights, device)
        }
        on_host = sum(weight.nbytes for weight in weights if weight.device not in roomy)
        free = free_bytes(torch.device("cpu"))
        if on_host > free:
            raise CaptureError(
                f"Trials keep a copy of the weights on the host: {on_host / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free.",
                hint="Use --movement gradient, or --include fewer modules.",
            )
        self._base = {
            name: weight.detach().clone() if weight.device in roomy else _on_host(weight.detach())
            for name, weight in self._weights.items()
        }
        try:
            yield
        finally:
            try:
                self._restore()
            except KeyboardInterrupt:
                self._restore()
                raise
            self._base = {}

    @torch.no_grad()
    def _restore(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._base[name])

    def _captured(self) -> GradientCapture:
        blocks = checkpointed_blocks(self._model) if self._settings.checkpointing else ()
        return GradientCapture(self._model, self._sources, self, blocks=blocks)

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Receive a gradient from the capture."""
        self._mover.add(name, gradient)

    def _new_mover(self, trial: int = 0) -> Mover:
        return Mover(
            self._weights,
            self._settings.trial_optimizer,
            compensated=self._compensated,
            seed=self._seed + trial,
            processes=self._processes,
        )

    def _find_rate(self, train: Sequence[ProbeUnit], test: Sequence[ProbeUnit]) -> float:
        """Train a few steps at several rates; the loss on another part of the probes decides."""
        size = max(2 * _SEARCH_STEPS, round(_SEARCH_SHARE * len(self._probes.sequences)))
        train, test = train[:size], test[:size]
        steps = min(_SEARCH_STEPS, self._settings.trial_steps)
        self._told.start("finding the learning rate", MOST_TRIES, "tries")
        references = self._with_base_log_probs(test)
        try:
            before = self._mean_loss(test, references)
        except DivergedError as error:
            raise CaptureError(
                "The loss is not finite with the base weights.",
                hint="float16 overflows easily: use --dtype bfloat16 or float32. Check the "
                "checkpoint for broken weights.",
            ) from error
        gains: dict[float, float] = {}

        def gain(rate: float) -> float:
            if rate not in gains:
                try:
                    self._train(train, rate, steps, trial=-1)
                    gained = before - self._mean_loss(test, references)
                except DivergedError:
                    gained = -math.inf
                finally:
                    self._restore()
                # Rounding may differ between processes; what follows must not.
                gains[rate] = self._processes.gather(gained)[0]
                self._told.advance(1)
            return gains[rate]

        best, factor = FIRST_RATE, RATE_FACTOR
        if gain(best * factor) <= gain(best):
            factor = 1 / factor
        while len(gains) < MOST_TRIES and gain(best * factor) > gain(best):
            best *= factor
        if not math.isfinite(gains[best]):
            raise _diverges(", ".join(f"{rate:.1e}" for rate in sorted(gains)))
        self._before, self._after = before, before - gains[best]
        return best

    def _run_trials(self, trials: Sequence[tuple[int, int, list[ProbeUnit]]], rate: float) -> None:
        total = sum(len(item.input_ids) for _, _, units in trials for item in _sequences(units))
        self._told.start("training", total, "tokens")
        for number, (half, index, units) in enumerate(trials):
            here = Place(number=1, half=half, group=index)
            if here < self._place:
                self._told.advance(sum(len(item.input_ids) for item in _sequences(units)))
                continue
            nats, tokens = self._nats, self._tokens
            while True:
                try:
                    self._train(units, rate, self._settings.trial_steps, trial=number)
                    break
                except BatchTooLargeError:
                    self._restore()
                    self._nats, self._tokens = nats, tokens
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
            self._hand_over(half, len(self._probes.units[0]) * half + index)
            self._place = Place(number=1, half=half, group=index + 1)
            if self._file is not None and self._file.is_due():
                stored = Progress(
                    place=self._place,
                    loss=self._nats,
                    tokens=self._tokens,
                    batch_size=self._batch_size,
                    rate=rate,
                )
                self._file.save(stored, self._gradients.state())

    def _train(self, units: Sequence[ProbeUnit], rate: float, steps: int, *, trial: int) -> None:
        """Train from the base weights, each example once.

        Raises:
            DivergedError: A loss is not finite.
            BatchTooLargeError: A batch did not fit; the batch size is halved for the next try.
        """
        self._mover = self._new_mover(trial + 1)
        references = self._with_base_log_probs(units)
        steps = min(steps, len(units))
        warm_up = max(1, round(_WARM_UP_SHARE * steps))
        for step in range(steps):
            part = units[len(units) * step // steps : len(units) * (step + 1) // steps]
            self._mover.begin_step(rate * min(1.0, (step + 1) / warm_up))
            # Every process learns how the others fared before they add their gradients up.
            outcomes = self._processes.gather(self._backward(part, references, step, trial))
            if "out of memory" in outcomes:
                self._batch_size = max(1, self._batch_size // 2)
                raise BatchTooLargeError
            if "not finite" in outcomes:
                raise DivergedError
            self._mover.end_step()
            if trial >= 0:
                self._told.advance(sum(len(item.input_ids) for item in _sequences(part)))

    def _backward(
        self,
        units: Sequence[ProbeUnit],
        references: Mapping[ProbeExample, ProbeExample],
        step: int,
        trial: int,
    ) -> str:
        """Run this process's share of a step both ways; says how it went, empty for well."""
        size = self._size(units)
        scale = FLOAT16_LOSS_SCALE if self._model.dtype == torch.float16 else 1.0
        batches = cut(self._processes.share(units), self._units_per_batch(units))
        for number, batch in enumerate(batches, start=1):
            share = self._size(batch) / size if size else 0.0
            self._mover.begin_part(share / scale, last=number == len(batches))
            try:
                loss, log_probs, counted = self._forward(batch, references)
                if not math.isfinite(float(loss.detach())):
                    return "not finite"
                (loss * scale).backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._batch_size == 1:
                    raise
                return "out of memory"
            if step == 0 and trial >= 0:
                self._nats -= float(log_probs.detach().sum())
                self._tokens += float(counted.sum())
        return ""

    def _forward(
        self, units: Sequence[ProbeUnit], references: Mapping[ProbeExample, ProbeExample]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean loss over what the units count, log-probabilities, and which tokens count."""
        batch = self._collate([references.get(item, item) for item in _sequences(units)])
        log_probs, counted = counted_log_probs(
            self._model,
            batch,
            positions=self._positions,
            temperature=self._probes.temperature,
        )
        old = batch.old_log_probs.to(log_probs)
        if self._objective.objective == "dpo":
            ratios = torch.where(counted, log_probs - old, 0.0).sum(-1)
            tokens = counted.sum(-1).clamp(min=1)
            pair_loss = PAIR_LOSSES[self._objective.loss_type_name]
            total = pair_loss(
                ratios[::2], ratios[1::2], tokens[::2], tokens[1::2], self._objective.beta_value
            ).sum()
        else:
            total = self._loss(log_probs, batch.coefficients.to(log_probs), counted, old)
        return total / max(self._size(units), 1e-30), log_probs, counted

    def _size(self, units: Sequence[ProbeUnit]) -> float:
        """What the summed loss of units is divided by: pairs, or weighed tokens."""
        if self._objective.objective == "dpo":
            return float(len(units))
        return math.fsum(abs(item.coefficient) * item.counted_tokens for item in _sequences(units))

    @torch.no_grad()
    def _mean_loss(
        self, units: Sequence[ProbeUnit], references: Mapping[ProbeExample, ProbeExample]
    ) -> float:
        size, total = self._size(units), 0.0
        for part in cut(units, self._units_per_batch(units)):
            loss, _, _ = self._forward(part, references)
            total += float(loss) * self._size(part) / size
        if not math.isfinite(total):
            raise DivergedError
        return total

    @torch.no_grad()
    def _with_base_log_probs(self, units: Sequence[ProbeUnit]) -> dict[ProbeExample, ProbeExample]:
        """Sequences with the log-probabilities of the base model, where a loss compares with them.

        Those of preference pairs are always the base model's; completions whose sampling policy
        is known keep its own.
        """
        preference = self._objective.objective == "dpo"
        if self._objective.objective == "sft":
            return {}
        found = {}
        wanted = [item for item in _sequences(units) if preference or not item.old_log_probs]
        for part in cut(wanted, self._batch_size):
            log_probs, counted = counted_log_probs(
                self._model,
                self._collate(part),
                positions=self._positions,
                temperature=self._probes.temperature,
            )
            for item, row, places in zip(part, log_probs, counted, strict=True):
                found[item] = replace(item, old_log_probs=tuple(row[places].tolist()))
        return found

    def _collate(self, sequences: Sequence[ProbeExample]) -> Batch:
        return collate(
            sequences,
            pad_token_id=self._probes.pad_token_id,
            padding_side=self._settings.padding_side,
            device=input_device(self._model),
        )

    def _units_per_batch(self, units: Sequence[ProbeUnit]) -> int:
        """Units whose sequences fill a batch: a pair has two, a prompt several completions."""
        longest = max((len(_sequences([unit])) for unit in units), default=1)
        return max(1, self._batch_size // longest)

    def _hand_over(self, half: int, group: int) -> None:
        """Put every weight back, and give its update to the receiver as if it were a gradient."""
        finite: list[torch.Tensor] = []
        self._gradients.begin_batch(half, 1.0)
        for name in self._weights:
            if name not in self._mover.moved:
                continue
            update = self._mover.take_back(name, self._base[name])
            finite.append(torch.isfinite(update.sum()).cpu())
            # Every process holds the same update, and one of them scores.
            if self._processes.is_main:
                self._gradients.add(name, update)
        if not self._processes.gather(not finite or bool(torch.stack(finite).all()))[0]:
            raise DivergedError
        self._gradients.end_group(half, group)


def _sequences(units: Sequence[ProbeUnit]) -> list[ProbeExample]:
    return [item for unit in units for item in (unit.pair or unit.sequences)]


def _on_host(weight: torch.Tensor) -> torch.Tensor:
    """A copy on the host; a GPU reads it without a detour."""
    pin = weight.device.type == "cuda"
    return torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pin).copy_(weight)


def _kept_bytes(weights: Mapping[str, nn.Parameter], device: torch.device) -> int:
    """Bytes of the weights on a device, and of what those of 16 bits cannot hold."""
    here = [weight for weight in weights.values() if weight.device == device]
    return sum(weight.nbytes * (2 if weight.dtype.itemsize == 2 else 1) for weight in here)


def _residuals_fit(weights: Mapping[str, nn.Parameter]) -> bool:
    """Whether as many bytes as the weights have are free on each device, and half of it again."""
    devices = {weight.device for weight in weights.values()}
    return all(free_bytes(device) > 0.75 * _kept_bytes(weights, device) for device in devices)


def _diverges(rates: str) -> CaptureError:
    return CaptureError(
        f"The trials diverge at every learning rate that was tried: {rates}.",
        hint="Give a lower --trial-rate, or use --movement gradient.",
    )
