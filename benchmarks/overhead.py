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
from machine import cpu_peak_bytes, write_result
from models import MODELS, build, random_probes
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hlscore.flow import Silent, score_probes
from hlscore.gradients.estimator import predict
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketch import TestMatrices, default_sketch_size
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import observed_sources, weight_sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.examples import cut
from hlscore.inputs.identity import identify
from hlscore.inputs.modules import candidates_of, decoder_blocks, find_modules
from hlscore.objectives.likelihood import token_log_probs
from hlscore.probes.units import ProbeSet, by_length, collate
from hlscore.settings import (
    CandidateSettings,
    CaptureSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)

ARMS = ("plain", "frozen", "sketch", "exact")


def settings_of(options: argparse.Namespace, estimator: str) -> RankSettings:
    """Settings of a run of the flow."""
    return RankSettings(
        model=ModelSettings(model=options.model),
        capture=CaptureSettings(
            batch_size=options.batch_size,
            checkpointing=options.checkpointing,
            estimator=estimator,
            sketch_size=options.sketch_size,
            passes=options.passes if estimator == "sketch" else 1,
        ),
        plan=PlanSettings(rank=options.rank),
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
                    padding_side="right",
                    device=embedding.weight.device,
                )
                logits = model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    use_cache=False,
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
    ProbeRun(model, probes, gradients, sources, settings.capture, on_tokens=lambda _: None).run()


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
    identity = identify(model, options.model, None)
    modules = find_modules(model, CandidateSettings())
    shares = {}
    for estimator in ("sketch", "exact"):
        clock = _StepClock()
        score_probes(model, modules, identity, probes, settings_of(options, estimator), clock)
        ended = time.perf_counter()
        shares[estimator] = (ended - clock.begun["scoring"]) / (
            clock.begun["scoring"] - clock.begun["probing"]
        )
    return shares


class _StepClock(Silent):
    """Notes when each step of the flow begins."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    def start(self, what: str, total: int, unit: str) -> None:  # noqa: ARG002
        """Note the time."""
        self.begun[what] = time.perf_counter()


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


def load(options: argparse.Namespace) -> tuple[PreTrainedModel, ProbeSet]:
    """The model and probes that all arms run on."""
    dtype = getattr(torch, options.dtype)
    model = build(options.model, dtype=dtype, device=options.device)
    probes = random_probes(model, examples=options.examples, length=options.length)
    return model, probes


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


def profile_arm(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, arm: str
) -> None:
    """Print where an arm spends its time."""
    run_arm(model, probes, options, arm)
    with torch.profiler.profile(record_shapes=True) as profiler:
        run_arm(model, probes, options, arm)
    print(
        profiler.key_averages(group_by_input_shape=True).table(
            sort_by="self_cpu_time_total", row_limit=30, max_shapes_column_width=60
        )
    )


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, default="qwen3-41m")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sketch-size", type=int)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--profile", choices=ARMS, help="print a profile of one arm and stop")
    return parser.parse_args()


def main() -> None:
    """Run, print a table, write a dated JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    model, probes = load(options)
    if options.profile:
        profile_arm(model, probes, options, options.profile)
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
    table = Table(
        "arm",
        "seconds",
        "time / plain",
        "range",
        "peak MiB",
        "peak / frozen",
        "predicted MiB",
        "scoring / capture",
    )
    for row in results:
        table.add_row(
            row["arm"],
            f"{row['seconds']}",
            f"{row['time_over_plain']}",
            f"{row['smallest']}-{row['largest']}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['peak_over_frozen']}",
            "" if row["predicted_bytes"] is None else f"{row['predicted_bytes'] / 2**20:.0f}",
            "" if row["scoring_over_capture"] is None else f"{row['scoring_over_capture']}",
        )
    Console().print(table)
    name = f"overhead_{options.model}" + ("" if options.checkpointing else "_no-checkpointing")
    content = {"settings": vars(options), "weight_bytes": weights, "results": results}
    print(write_result(name, content))


if __name__ == "__main__":
    main()
