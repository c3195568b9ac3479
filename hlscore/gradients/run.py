"""One capture and its reduction to statistics, with either estimator."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from hlscore.gradients.estimator import choose_estimator
from hlscore.gradients.jackknife import draw_resamples
from hlscore.gradients.memory import worker_count
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.progress import ProgressFile, Storage, stored_identity
from hlscore.gradients.self_check import check_weights_kept, sampled_parameters, try_model
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.statistics import Reduction, curve_ranks, reduce_gradients, reduce_sketches
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.trials import TrialRun
from hlscore.inputs.model import input_device
from hlscore.inputs.weights import dense_weight, is_sharded
from hlscore.probes.units import ProbeSet
from hlscore.processes import Processes
from hlscore.records import Candidate, GradientStatistics, ModelIdentity
from hlscore.settings import RankSettings
from hlscore.steps import Progress
from hlscore.threads import workers
from hlscore.unfinished import describe_run


class CaptureRun:
    """One capture and its reduction, with either estimator.

    Attributes:
        sketched: Whether gradients are sketched; then weights need not hold any.
        trial_rate: Learning rate of the trials; `None` without trials.
        earlier_seconds: What a resumed run took before; 0 for one that was not stopped.
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
            probes = replace(probes, counts=tuple((1,) * len(half) for half in probes.counts))
        self._probes = probes
        # Sharded weights change their form when they are gathered: no sample would compare them.
        self._sharded = is_sharded(model)
        self._samples = {} if self._sharded else sampled_parameters(model)
        self.notes: tuple[str, ...] = ()
        self.earlier_seconds = 0.0
        self.trial_rate: float | None = None
        # Where rows of a batch interact, each runs alone.
        difference, later, rounding = try_model(model, probes, capture.padding_side)
        check_weights_kept(self._name, self._samples, model)
        if any(processes.gather(not difference <= rounding)) and capture.batch_size != 1:
            capture = replace(capture, batch_size=1)
            self.notes += (
                f"Examples run one at a time: in a padded batch their tokens get other "
                f"probabilities (by {difference:.2g} nats) than alone.",
            )
        later = max(processes.gather(later))
        if later > rounding:
            self.notes += (
                f"{type(model).__name__} is not causal on text alone: later tokens change the "
                f"probabilities of earlier ones (by {later:.2g} nats), so the loss says "
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
        self.sketched = self.choice.estimator == "sketch"
        largest = self.choice.sketch_size // 2 if self.sketched else None
        self.ranks = curve_ranks(settings.plan.rank, largest, also=settings.plan.ranks)
        self._resamples = draw_resamples(
            *probes.counts, count=capture.bootstrap, seed=settings.seed
        )
        self.file: ProgressFile | None = None
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
            self.file = ProgressFile(storage, described | made, processes, together=self._sharded)

    def probe(self, progress: Progress) -> float:
        """Capture every gradient or update.

        Returns:
            Mean negative log-likelihood of the counted tokens, in nats.
        """
        model, chosen, capture, probes = self._model, self._chosen, self._capture, self._probes
        tests = TestMatrices(size=self.choice.sketch_size, seed=self._settings.seed)
        first, second = map(len, probes.counts)
        groups = None if self._resamples is None else (first, second)
        on_host = capture.accumulate_on == "host"
        gradients: ExactGradients | SketchGradients
        if self.sketched:
            gradients = SketchGradients(chosen, tests, groups=groups)
        else:
            gradients = ExactGradients(chosen, tests, groups=groups, on_host=on_host)
        self._gradients = gradients
        if self.sketched and not self._by_trials:
            sources = observed_sources(model, chosen, probes.sequences[0].input_ids[:8])
        else:  # trials move the weights themselves, whatever their updates are reduced to
            sources = weight_sources(model, chosen)
        run: ProbeRun | TrialRun
        if self._by_trials:
            run = TrialRun(
                model, probes, gradients, sources, capture, self._settings.objective,
                seed=self._settings.seed, progress=progress, processes=self._processes,
                progress_file=self.file,
            )  # fmt: skip
        else:
            run = ProbeRun(
                model, probes, gradients, sources, capture, self._settings.objective,
                on_tokens=progress.advance, processes=self._processes, progress_file=self.file,
                in_step=self._sharded,
            )  # fmt: skip
            tokens = self._processes.share([len(item.input_ids) for item in probes.sequences])
            progress.start("probing", sum(tokens) * capture.passes, "tokens")
        if self._resume and self.file is not None:
            device = torch.device("cpu") if on_host else input_device(model)
            run.state, state = self.file.load(run.state, device)
            gradients.load(state, run.state.position.number)
            self.earlier_seconds = self.file.earlier_seconds
        mean_loss = run.run()
        self.notes += tuple(run.notes())
        self.trial_rate = run.state.rate if self._by_trials else None
        check_weights_kept(self._name, self._samples, model)
        # Every process takes part where weights are sharded.
        self._norms: dict[str, float | None] = {}
        for item in chosen:
            weight = dense_weight(model, item)
            norm = None if weight is None else float(torch.linalg.vector_norm(weight.float()))
            self._norms[item.module] = norm
        return mean_loss

    def reduce(self, progress: Progress) -> dict[str, GradientStatistics]:
        """Reduce one module after the other; what was captured of it is then forgotten."""
        gradients = self._gradients
        counts = (sum(self._probes.counts[0]), sum(self._probes.counts[1]))
        reduction = Reduction(
            rank=self._settings.plan.rank,
            ranks=self.ranks,
            counts=counts,
            svd=self._settings.capture.svd,
            seed=self._settings.seed,
            resamples=self._resamples,
        )
        progress.start("scoring", len(self._chosen), "modules")
        statistics: dict[str, GradientStatistics] = {}

        def reduce_module(item: Candidate) -> tuple[str, GradientStatistics]:
            name, norm = item.module, self._norms[item.module]
            if isinstance(gradients, SketchGradients):
                sketches, groups = gradients.take(name, counts)
                return name, reduce_sketches(sketches, norm, groups, reduction, name=name)
            means, groups = gradients.take(name, counts)
            weight = None if self._by_trials else self._model.get_parameter(item.parameter)
            found = reduce_gradients(means, norm, groups, reduction, weight=weight, name=name)
            return name, found

        def done(found: tuple[str, GradientStatistics]) -> None:
            statistics[found[0]] = found[1]
            progress.advance(1)

        def work_bytes(item: Candidate) -> int:
            """Memory that reducing one module takes besides its sums, an estimate."""
            short, long = item.max_rank, max(item.out_features, item.in_features)
            width = min(long, self.choice.sketch_size) if self.sketched else long
            # Both halves in float64, the mean and its signs; Gram matrices and their vectors.
            return item.matrices * (40 * short * width + 64 * min(short, width) ** 2)

        # The largest first, so that no thread is left with one of them when the others have ended.
        ordered = sorted(self._chosen, key=work_bytes, reverse=True)
        sums_on_host = not self.sketched and self._capture.accumulate_on == "host"
        on_cpu = sums_on_host or input_device(self._model).type == "cpu"
        with workers(worker_count(work_bytes(ordered[0])) if on_cpu else 0, done) as submit:
            for item in ordered:
                submit(partial(reduce_module, item))
        return {item.module: statistics[item.module] for item in self._chosen}
