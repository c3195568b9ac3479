"""What does a capture cost beside a plain forward and backward pass over the same tokens?

Run it with `python benchmarks/overhead.py --model qwen3-41m --examples 16 --length 256`. All arms
run in one process in turn, in every repetition in another order: plain passes that form and keep
all weight gradients (candidates, embedding, head), passes that form none, the sketch estimator
and the exact one, each with the same batches and the same checkpointing. Memory is the peak of
all tensors together, as the profiler (on a GPU, the allocator) counts them, beside the weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
from machine import cpu_peak_bytes, parsed, print_table, write_result
from models import MODELS, StepClock, build, random_probes, score, settings_for
from rich.progress import track
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hlscore.gradients.estimator import predict
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.examples import cut
from hlscore.inputs.modules import candidates_of, decoder_blocks, find_modules
from hlscore.objectives.likelihood import token_log_probs
from hlscore.probes.units import ProbeSet, by_length, collate
from hlscore.settings import CandidateSettings, RankSettings
from hlscore.settings.capture import default_sketch_size

ARMS = ("plain", "frozen", "sketch", "exact")


def settings_of(options: argparse.Namespace, estimator: str) -> RankSettings:
    """Settings of a run of the flow."""
    return settings_for(
        options.model,
        options.rank,
        batch_size=options.batch_size,
        checkpointing=options.checkpointing,
        estimator=estimator,
        sketch_size=options.sketch_size,
    )


def plain_pass(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, *, gradients: bool
) -> None:
    """Forward and backward over every batch, as a training step without an optimizer does."""
    for parameter in model.parameters():
        parameter.requires_grad_(gradients)
        parameter.grad = None
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(
        lambda *seen: seen[2] if gradients else seen[2].requires_grad_()
    )
    blocks = [model.get_submodule(name) for name in decoder_blocks(model)]
    if options.checkpointing:
        for block in blocks:
            block.forward = _checkpointed(block.forward)
    try:
        tokens = probes.summary.counted_tokens
        for group in (group for half in probes.halves for group in half):
            for examples in cut(by_length(group), options.batch_size):
                batch = collate(
                    examples,
                    pad_token_id=probes.pad_token_id,
                    device=embedding.weight.device,
                )
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
                loss = -token_log_probs(logits, batch.labels).sum()
                (loss / tokens).backward()
    finally:
        hook.remove()
        if options.checkpointing:
            for block in blocks:
                del block.forward
        for parameter in model.parameters():
            parameter.grad = None


def _checkpointed(forward: Callable[..., object]) -> Callable[..., object]:
    def run(*args: object, **kwargs: object) -> object:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def capture_pass(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, estimator: str
) -> None:
    """The capture of one estimator, group sketches for the standard errors included."""
    settings = settings_of(options, estimator)
    chosen = candidates_of(find_modules(model, CandidateSettings()))
    size = options.sketch_size or default_sketch_size(options.rank)
    tests = TestMatrices(size=size, seed=0)
    groups = (len(probes.halves[0]), len(probes.halves[1]))
    if estimator == "sketch":
        gradients = SketchGradients(chosen, tests, groups=groups)
        ids = probes.halves[0][0][0].input_ids[:8]
        sources = observed_sources(model, chosen, ids)
    else:
        gradients = ExactGradients(chosen, tests, groups=groups)
        sources = weight_sources(model, chosen)
    ProbeRun(
        model=model, probes=probes, gradients=gradients, sources=sources, settings=settings.capture
    ).run()


def run_arm(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, arm: str
) -> None:
    """Run one arm to its end."""
    if arm in ("plain", "frozen"):
        plain_pass(model, probes, options, gradients=arm == "plain")
    else:
        capture_pass(model, probes, options, arm)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()


def scoring_share(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace
) -> dict[str, float]:
    """Time of the scoring over that of the capture, in whole runs of the flow."""
    shares = {}
    for estimator in ("sketch", "exact"):
        clock = StepClock()
        score(model, probes, settings_of(options, estimator), clock)
        ended = time.perf_counter()
        shares[estimator] = (ended - clock.begun["scoring"]) / (
            clock.begun["scoring"] - clock.begun["probing"]
        )
    return shares


def peak_bytes(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, arm: str
) -> int:
    """Largest sum of tensor memory that one arm allocates."""
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_arm(model, probes, options, arm)
        return torch.cuda.max_memory_allocated() - before
    return cpu_peak_bytes(lambda: run_arm(model, probes, options, arm))


def time_arms(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of every arm in every repetition, after one round to warm up."""
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repetition in track(range(options.repeats + 1), description="rounds", transient=True):
        turned = repetition % len(ARMS)
        for arm in ARMS[turned:] + ARMS[:turned]:
            gc.collect()
            began = time.perf_counter()
            run_arm(model, probes, options, arm)
            if repetition:
                seconds[arm].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Run, print a table, write a dated JSON."""
    options = parsed(
        __doc__, model={"choices": MODELS, "default": "qwen3-41m"}, examples=64, length=256,
        batch_size=4, rank=16, sketch_size={"type": int}, repeats=3, threads=2,
        device="cpu", dtype="float32",
        checkpointing={"action": argparse.BooleanOptionalAction, "default": True},
        profile={"choices": ARMS, "help": "print a profile of one arm and stop"},
    )  # fmt: skip
    model = build(options.model, dtype=getattr(torch, options.dtype), device=options.device)
    probes = random_probes(model, examples=options.examples, length=options.length)
    if options.profile:
        run_arm(model, probes, options, options.profile)
        with torch.profiler.profile(record_shapes=True) as profiler:
            run_arm(model, probes, options, options.profile)
        times = profiler.key_averages(group_by_input_shape=True)
        print(times.table(sort_by="self_cpu_time_total", row_limit=30, max_shapes_column_width=60))
        return
    seconds = time_arms(model, probes, options)
    shares = scoring_share(model, probes, options)
    memory = {arm: peak_bytes(model, probes, options, arm) for arm in ARMS}
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needs = predict(
        model,
        candidates_of(find_modules(model, CandidateSettings())),
        probes,
        settings_of(options, "sketch").capture,
        sketch_size=options.sketch_size or default_sketch_size(options.rank),
        itemsize=model.dtype.itemsize,
    )
    results = []
    for arm in ARMS:
        ratios = [a / b for a, b in zip(seconds[arm], seconds["plain"], strict=True)]
        estimator = "exact" if arm == "exact" else "sketch"
        results.append(
            {
                "arm": arm,
                "seconds": round(statistics.median(seconds[arm]), 3),
                "time_over_plain": round(statistics.median(ratios), 3),
                "smallest": round(min(ratios), 3),
                "largest": round(max(ratios), 3),
                "peak_bytes": memory[arm],
                "peak_over_frozen": round(
                    (weights + memory[arm]) / (weights + memory["frozen"]), 3
                ),
                "predicted_bytes": needs.on_device(estimator, "device")
                if arm in ("sketch", "exact")
                else None,
                "scoring_over_capture": round(shares[arm], 3) if arm in shares else None,
            }
        )
    print_table(
        ("arm", "seconds", "time / plain", "range", "peak MiB", "peak / frozen", "predicted MiB",
         "scoring / capture"),
        [
            (row["arm"], row["seconds"], row["time_over_plain"],
             f"{row['smallest']}-{row['largest']}", f"{row['peak_bytes'] / 2**20:.0f}",
             row["peak_over_frozen"],
             "" if row["predicted_bytes"] is None else f"{row['predicted_bytes'] / 2**20:.0f}",
             "" if row["scoring_over_capture"] is None else row["scoring_over_capture"])
            for row in results
        ],
    )  # fmt: skip
    name = f"overhead_{options.model}" + ("" if options.checkpointing else "_no-checkpointing")
    content = {"settings": vars(options), "weight_bytes": weights, "results": results}
    print(write_result(name, content))


if __name__ == "__main__":
    main()
