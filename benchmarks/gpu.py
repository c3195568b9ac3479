"""What a GPU is asked, in order of worth: one command that goes on where it stopped.

Run `python benchmarks/gpu.py --minutes 9` again and again until it says that everything is
measured. Each stage is a process of its own and writes into `results/gpu_<date>.json` as soon as it
has ended, with the name of the card; a stage that is there for this card is not run again.
Stages: `tests` (tests/test_gpu.py), one per movement and estimator on a model of the shape of
Qwen3-8B with random weights (time, memory, plain training pass over the same tokens in the same
process), `out_of_memory` (batches halved by a real allocator), `optimizer` (peak of a real AdamW
step with PEFT against the memory model) and `four_bit` (where bitsandbytes is installed). The study
on a real model is `evidence/real_study.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, describe, parsed
from models import MODELS, StepClock, build, score, settings_for, structured_probes
from overhead import plain_pass
from transformers import PreTrainedModel

from hlscore.inputs.modules import find_modules
from hlscore.probes.units import ProbeSet
from hlscore.settings import CandidateSettings

RANK = 16
GIB = 2**30


def plain_seconds(model: PreTrainedModel, probes: ProbeSet) -> float:
    """Seconds of a plain training pass over the probes, the faster of two."""
    options = argparse.Namespace(batch_size=4, checkpointing=True)
    seconds = []
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        plain_pass(model, probes, options, gradients=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    model.requires_grad_(False)
    return min(seconds)


def large_model(options: argparse.Namespace, movement: str, estimator: str) -> dict[str, Any]:
    """Time and memory of one run on the large shape."""
    model = build(options.model, dtype=torch.bfloat16, device="cuda")
    groups = 2 if movement == "trial" else 8
    probes = structured_probes(
        model, examples=options.examples, length=options.length, groups=groups
    )
    plain = plain_seconds(model, probes)
    weights = sum(weight.nbytes for weight in model.parameters())
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = settings_for(options.model, RANK, batch_size=4, movement=movement, estimator=estimator)
    clock, began = StepClock(), time.perf_counter()
    found = score(model, probes, run, clock)
    torch.cuda.synchronize()
    ended = time.perf_counter()
    times = [*clock.begun.values(), ended]
    return {
        "plain_training_pass_seconds": plain,
        "rank_seconds": ended - began,
        "over_plain_pass": (ended - began) / plain,
        "steps": {
            what: end - start
            for what, (start, end) in zip(clock.begun, pairwise(times), strict=True)
        },
        "weight_gib": weights / GIB,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "notes": list(found.report.run.notes),
        "positive": sum((row.hls or 0) > 0 for row in found.report.candidates),
        "candidates": len(found.report.candidates),
    }


def out_of_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Leave so little memory that the asked batch size cannot fit, and look what is done."""
    model = build(options.small, dtype=torch.float32, device="cuda")
    probes = structured_probes(model, examples=64, length=1024, groups=2)
    found: dict[str, Any] = {}
    for movement in ("gradient", "trial"):
        rate = {"trial_rate": 1e-4} if movement == "trial" else {}
        run = settings_for(
            options.small, RANK, batch_size=4, movement=movement, estimator="exact", **rate
        )
        roomy = score(model, probes, run)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(free - options.left_mib * 2**20, dtype=torch.uint8, device="cuda")
        large = replace(run, capture=replace(run.capture, batch_size=64, checkpointing=False))
        tight = score(model, probes, large)
        del hog
        expected = {row.module: row.hls or 0.0 for row in roomy.report.candidates}
        largest = max(abs(value) for value in expected.values())
        found[movement] = {
            "notes": list(tight.report.run.notes),
            "largest_difference_over_largest_hls": max(
                abs((row.hls or 0.0) - expected[row.module]) for row in tight.report.candidates
            )
            / largest,
        }
    return found


def optimizer(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of real training steps beside what the memory model says."""
    import memory

    found: dict[str, Any] = {}
    for arm in memory.ARMS:
        dtype = torch.float32 if arm == "full" else torch.bfloat16
        model = build(options.small, dtype=dtype, device="cuda")
        model.config.use_cache = False
        predicted = memory.predict(model, arm, 4, 1024)
        choices = memory.choices_of(
            memory.candidates_of(find_modules(model, CandidateSettings())), arm
        )
        trained = model if arm == "full" else memory.wrapped(model, choices)
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained.train()
        adamw = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-5)
        tokens = torch.randint(0, model.config.vocab_size, (4, 1024), device="cuda")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                trained(input_ids=tokens, labels=tokens).loss.backward()
            adamw.step()
            adamw.zero_grad(set_to_none=True)
        peak = torch.cuda.max_memory_allocated()
        found[arm] = {
            "measured_gib": peak / GIB,
            "predicted_gib": predicted.total_bytes / GIB,
            "predicted_over_measured": predicted.total_bytes / peak,
        }
        del model, trained, adamw
        gc.collect()
    return found


def four_bit(options: argparse.Namespace) -> dict[str, Any]:
    """A sketch of 4-bit weights: time, memory, and what `auto` says of trials."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = Path("/tmp/hlscore-four-bit")  # noqa: S108 - a bare machine of one user
    build(options.small, dtype=torch.bfloat16, device="cuda").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cuda"
    )
    probes = structured_probes(model, examples=64, length=1024)
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    settings = settings_for(
        options.small, RANK, batch_size=4, movement="gradient", estimator="sketch"
    )
    found = score(model, probes, settings)
    return {
        "seconds": time.perf_counter() - began,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "positive": sum((row.hls or 0) > 0 for row in found.report.candidates),
    }


def tests(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """The GPU tests."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "4", "-p", "no:cacheprovider",
         "tests/test_gpu.py"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "code": done.returncode,
        "seconds": time.perf_counter() - began,
        "summary": lines[-1] if lines else done.stderr[-300:],
        "failed": failed,
    }


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tests": tests,
    "gradient_sketch": lambda options: large_model(options, "gradient", "sketch"),
    "trial_sketch": lambda options: large_model(options, "trial", "sketch"),
    "trial_exact": lambda options: large_model(options, "trial", "exact"),
    "out_of_memory": out_of_memory,
    "optimizer": optimizer,
    **({"four_bit": four_bit} if find_spec("bitsandbytes") else {}),
}


def main() -> None:
    """Run what is not measured yet, each stage in a process of its own."""
    options = parsed(
        __doc__, minutes=9.0, model={"choices": MODELS, "default": "qwen3-8b"},
        small={"choices": MODELS, "default": "qwen3-60m"}, examples=64, length=1024, left_mib=4096,
        only={"choices": STAGES, "nargs": "*", "default": list(STAGES)},
        stage={"choices": STAGES, "help": "run one here and print its result"},
    )  # fmt: skip
    if not torch.cuda.is_available():
        print("No GPU here: nothing is measured.")
        return
    if options.stage:
        print(json.dumps(STAGES[options.stage](options)))
        return
    ends = time.monotonic() + 60 * options.minutes
    card = torch.cuda.get_device_name(0)
    path = RESULTS / f"gpu_{datetime.now(tz=UTC).date().isoformat()}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    done: dict[str, Any] = found.setdefault(card, {"machine": describe(), "stages": {}})["stages"]
    for name in options.only:
        left = ends - time.monotonic()
        if name in done or left < 20:
            continue
        command = [sys.executable, *sys.argv, "--stage", name]
        try:
            run = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped for want of time")
            continue
        if run.returncode == 0:
            done[name] = json.loads(run.stdout.strip().splitlines()[-1])
        else:
            done[name] = {"failed": run.stderr[-2000:]}
        print(name, json.dumps(done[name])[:1500], flush=True)
        path.write_text(json.dumps(found, indent=2) + "\n")
    missing = [name for name in options.only if name not in done]
    print("missing: " + ", ".join(missing) if missing else "everything is measured")


if __name__ == "__main__":
    main()
