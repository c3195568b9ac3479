"""One capture and its reduction to statistics, with either estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hlscore.errors import CaptureError
from hlscore.gradients.estimator import choose_estimator
from hlscore.gradients.exact import ExactGradients
from hlscore.gradients.memory import is_out_of_memory, worker_count
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.progress import ProgressFile, stored_identity
from hlscore.gradients.resampling import draw_resamples
from hlscore.gradients.self_check import (
    batch_difference,
    check_weights_kept,
    later_tokens_matter,
    sampled_parameters,
)
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.statistics import (
    Reduction,
    curve_ranks,
    reduce_gradients,
    reduce_sketches,
    unreached,
)
from hlscore.gradients.trials import TrialRun, TrialSummary
from hlscore.inputs.model import input_device
from hlscore.inputs.sharding import is_sharded
from hlscore.inputs.weights import dense_weight
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import Candidate, GradientStatistics, ModelIdentity
from hlscore.settings import CaptureSettings, RankSettings
from hlscore.steps import Progress
from hlscore.threads import Workers
from hlscore.unfinished import describe_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where an unfinished run is stored.

    Attributes:
        folder: Folder of the results.
        every_seconds: Time between two writes.
        resume: Go on with the run that is stored there.
    """

    folder: Path
    every_seconds: float
    resume: bool


class CaptureRun:
    """One capture and its reduction, with either estimator.

    Args:
        model: The model with weights; comes back as it was.
        chosen: Modules to capture.
        processes: This process among those that share the probes.
        storage: Where progress is stored, if anywhere.

    Attributes:
        choice: The estimator, and why.
        notes: Remarks on the run so far.
        ranks: Ranks of the tail curves.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        chosen: tuple[Candidate, ...],
        identity: ModelIdentity,
        probes: ProbeSet,
        settings: RankSettings,
        processes: Processes,
        storage: Storage | None,
    ) -> None:
        self._model, self._chosen, self._settings = model, chosen, settings
        self._name, self._processes = identity.model, processes
        capture, device = settings.capture, input_device(model)
        self._by_trials = capture.movement == "trial"
        if self._by_trials:
            # Each trial is one update, however many tokens it saw.
            ones = tuple((1,) * len(half) for half in probes.counts)
            probes = replace(probes, counts=ones)
        self._probes = probes
        # Sharded weights change their form when they are gathered: no sample would compare them.
        self._sharded = is_sharded(model)
        self._samples = None if self._sharded else sampled_parameters(model)
        self.notes: tuple[str, ...] = ()
        # Try the model on a few tokens; where rows of a batch interact, each runs alone.
        difference, rounding = batch_difference(model, probes, capture.padding_side)
        self._check_weights_kept()
        differs = any(processes.gather(not difference <= rounding))
        if differs and capture.batch_size != 1:
            capture = replace(capture, batch_size=1)
            self.notes += (
                f"Examples run one at a time: in a padded batch their tokens get other "
                f"probabilities (by {difference:.2g} nats) than alone.",
            )
        later = max(processes.gather(later_tokens_matter(model, probes)))
        if later > rounding:
            self.notes += (
                f"{type(model).__name__} is not causal on text alone: later tokens change the "
                f"probabilities of earlier ones (by {later:.2g} nats), so that the loss says "
                "little.",
            )
        self._capture = capture
        self._resume = storage is not None and storage.resume
        stored = None
        if storage is not None and storage.resume and capture.estimator == "auto":
            known = stored_identity(storage.folder, processes)
            # Not there where nothing is stored, or by a version that is refused later.
            if "estimator" in known and "reason" in known:
                stored = str(known["estimator"]), str(known["reason"])
        self.choice = choose_estimator(
            model,
            chosen,
            probes,
            settings,
            device=device,
            reserved_bytes=0,
            itemsize=model.dtype.itemsize,
            packed=self._sharded or any(item.quantized for item in chosen),
            processes=processes,
            stored=stored,
        )
        # No weight gradient is formed, so that weights stay where they are.
        self.sketched = self.choice.estimator == "sketch"
        self.ranks = curve_ranks(
            settings.plan.rank,
            self.choice.sketch_size // 2 if self.sketched else None,
            also=settings.plan.ranks,
        )
        self._resamples = draw_resamples(
            *probes.counts, count=capture.bootstrap, seed=settings.seed
        )
        self._file: ProgressFile | None = None
        if storage is not None:
            described = describe_run(
                asdict(settings),
                identity,
                probes.summary.hash,
                device=device.type,
                processes=processes.size,
            )
            made = {
                "estimator": self.choice.estimator,
                "reason": self.choice.reason,
                "batch_size": capture.batch_size,
            }
            self._file = ProgressFile(
                storage.folder,
                described | made,
                processes,
                every_seconds=storage.every_seconds,
                together=self._sharded,
            )

    def _check_weights_kept(self) -> None:
        if self._samples is not None:
            check_weights_kept(self._name, self._samples, sampled_parameters(self._model))

    def probe(self, progress: Progress) -> float:
        """Capture every gradient or update.

        Returns:
            Mean negative log-likelihood of the counted tokens, in nats.
        """
        settings, chosen = self._settings, self._chosen
        tests = TestMatrices(size=self.choice.sketch_size, seed=settings.seed)
        first, second = (len(half) for half in self._probes.counts)
        groups = None if self._resamples is None else (first, second)
        if self.sketched:
            self._gradients: ExactGradients | SketchGradients = SketchGradients(
                chosen, tests, groups=groups
            )
        else:
            on_host = settings.capture.accumulate_on == "host"
            self._gradients = ExactGradients(chosen, tests, groups=groups, on_host=on_host)
        run = self._run_trials if self._by_trials else self._run_probes
        mean_loss = run(progress)
        self._check_weights_kept()
        return mean_loss

    def _run_probes(self, progress: Progress) -> float:
        capture, chosen = self._capture, self._chosen
        first_tokens = self._probes.sequences[0].input_ids[:8]
        run = ProbeRun(
            self._model,
            self._probes,
            self._gradients,
            observed_sources(self._model, chosen, first_tokens)
            if self.sketched
            else weight_sources(self._model, chosen),
            capture,
            self._settings.objective,
            on_tokens=progress.advance,
            processes=self._processes,
            progress_file=self._file,
            in_step=self._sharded,
        )
        tokens = self._processes.share([len(item.input_ids) for item in self._probes.sequences])
        progress.start("probing", sum(tokens) * capture.passes, "tokens")
        if self._resume:
            run.resume()
        mean_loss = run.run()
        if note := run.ratio_note:
            self.notes += (note,)
        smallest = min(self._processes.gather(run.batch_size))
        if smallest < capture.batch_size:
            self.notes += (
                f"The device ran out of memory: batches of {capture.batch_size} were halved down "
                f"to {smallest}.",
            )
        return mean_loss

    def _run_trials(self, progress: Progress) -> float:
        run = TrialRun(
            self._model,
            self._probes,
            self._gradients,
            # Trials move the weights themselves, whatever their updates are reduced to.
            weight_sources(self._model, self._chosen),
            self._capture,
            self._settings.objective,
            seed=self._settings.seed,
            progress=progress,
            processes=self._processes,
            progress_file=self._file,
        )
        if self._resume:
            run.resume()
        found = run.run()
        self.notes += _trial_notes(found, self._capture)
        return found.likelihood

    def reduce(
        self, progress: Progress, norms: Mapping[str, float | None]
    ) -> dict[str, GradientStatistics]:
        """Reduce one module after the other; what was captured of it is then forgotten.

        Args:
            norms: `||W||_F` of each module where sketches were taken.
        """
        reduction = Reduction(
            rank=self._settings.plan.rank,
            ranks=self.ranks,
            counts=(sum(self._probes.counts[0]), sum(self._probes.counts[1])),
            svd=self._settings.capture.svd,
            seed=self._settings.seed,
            resamples=self._resamples,
            of_gradients=not self._by_trials,
        )
        progress.start("scoring", len(self._chosen), "modules")
        statistics: dict[str, GradientStatistics] = {}

        def reduced(item: Candidate) -> tuple[str, GradientStatistics]:
            found = self._reduce(item, reduction, norms)
            self._gradients.forget(item.module)
            return item.module, found

        def done(found: tuple[str, GradientStatistics]) -> None:
            statistics[found[0]] = found[1]
            progress.advance(1)

        # The largest first, so that no thread is left with one of them when the others have ended.
        sizes = {item.module: self._reduction_bytes(item) for item in self._chosen}
        sums_on_host = not self.sketched and self._capture.accumulate_on == "host"
        on_cpu = sums_on_host or input_device(self._model).type == "cpu"
        with Workers(worker_count(max(sizes.values())) if on_cpu else 0, done) as workers:
            for item in sorted(self._chosen, key=lambda item: sizes[item.module], reverse=True):
                workers.submit(partial(reduced, item))
        return {item.module: statistics[item.module] for item in self._chosen}

    def _reduction_bytes(self, item: Candidate) -> int:
        """Memory that reducing one module takes besides its sums, an estimate."""
        short, long = item.max_rank, max(item.out_features, item.in_features)
        width = min(long, self.choice.sketch_size) if self.sketched else long
        # Both halves in float64, the mean and its signs; Gram matrices and their vectors.
        return item.matrices * (40 * short * width + 64 * min(short, width) ** 2)

    def _reduce(
        self, item: Candidate, reduction: Reduction, norms: Mapping[str, float | None]
    ) -> GradientStatistics:
        name, gradients = item.module, self._gradients
        groups = gradients.groups.of(name)
        if isinstance(gradients, SketchGradients):
            captured = gradients.sketches(name, reduction.counts)
            if captured is None:
                return unreached(norms[name], reduction)
            return reduce_sketches(captured, norms[name], groups, reduction, name=name)
        weight = self._model.get_parameter(item.parameter)
        means = gradients.means(name, reduction.counts)
        if means is None:
            return unreached(float(torch.linalg.vector_norm(weight.detach().float())), reduction)
        return reduce_gradients(*means, weight, groups, reduction, name=name)

    @property
    def earlier_seconds(self) -> float:
        """What a resumed run took before; 0 for one that was not stopped."""
        return 0.0 if self._file is None else self._file.earlier_seconds

    def forget_progress(self) -> None:
        """Remove the stored progress of a run that has ended."""
        if self._file is not None:
            self._file.forget()


def weight_norms(model: PreTrainedModel, chosen: tuple[Candidate, ...]) -> dict[str, float | None]:
    """`||W||_F` of each candidate; every process takes part where weights are sharded."""
    norms: dict[str, float | None] = {}
    for item in chosen:
        weight = dense_weight(model, item)
        norms[item.module] = (
            None if weight is None else float(torch.linalg.vector_norm(weight.float()))
        )
    return norms


def _trial_notes(found: TrialSummary, capture: CaptureSettings) -> tuple[str, ...]:
    fewer = found.steps < capture.trial_steps
    notes = [
        f"{capture.trials} trials of {found.steps} steps "
        f"{f'(not {capture.trial_steps}: each example is seen once) ' if fewer else ''}"
        f"at learning rate {found.rate:.2g} ({'found' if found.searched else 'given'}), optimizer "
        f"{capture.trial_optimizer}."
    ]
    if found.loss_before is not None and found.loss_after is not None:
        if found.loss_after < found.loss_before:
            notes.append(
                "A few steps at that rate change the loss on other examples from "
                f"{found.loss_before:.4g} to {found.loss_after:.4g}."
            )
        else:
            notes.append(
                "Warning: no learning rate lowered the loss on other examples "
                f"({found.loss_before:.4g}), so that the trials moved by noise. Use other probes "
                "(--data), more of them (--samples), or --movement gradient."
            )
    if found.compensated is False:
        notes.append(
            "16-bit weights were rounded at random in the trials, for memory was short: their "
            "updates carry that noise."
        )
    if found.batch_size < capture.batch_size:
        notes.append(
            f"The device ran out of memory: batches of {capture.batch_size} were halved down to "
            f"{found.batch_size}; the steps stayed the same."
        )
    return tuple(notes)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn an allocator's error into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise CaptureError(
            "The device ran out of memory, also with a single example at a time.",
            hint="Use --estimator sketch, a smaller --max-length, --dtype bfloat16, --load-in "
            "4bit, or --include fewer modules. `--dry-run` predicts the memory.",
        ) from error
