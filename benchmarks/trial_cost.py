"""What do trials cost, and does their choice come back?

Run it with `python benchmarks/trial_cost.py` (a random Qwen3 of 41 M parameters) or with
`--model benchmarks/.models/smollm2 --data FILE`. A plain training pass (`overhead.py`: forward and
backward over the same batches, all weight gradients) and whole runs by
trials and by gradients take turns in one process. Then chosen tenths are compared: trials in
bfloat16 against float32, other optimizers against `factored`, and disjoint halves of the examples.
Times are processor time, which other work on the machine changes least. Peak memory: all tensors
that the profiler counts, together with the weights.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from machine import cpu_peak_bytes, write_result
from models import MODELS, build, structured_probes
from overhead import plain_pass
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hlscore.flow.rank import rank_model
from hlscore.inputs.examples import read_examples
from hlscore.inputs.identity import identify
from hlscore.objectives.likelihood import token_log_probs
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeSet, ProbeUnit, by_length, collate, make_probe_set
from hlscore.settings import (
    CaptureSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)
from hlscore.steps import Silent

TRIALS = 4


def load(options: argparse.Namespace) -> tuple[PreTrainedModel, ProbeSet]:
    """The model and twice as many examples as one run uses, in one group of each half."""
    count = 2 * options.examples
    if options.model in MODELS:
        model = build(options.model, device="cpu")
        return model, structured_probes(model, examples=count, length=options.length, groups=1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    examples = read_examples(DataSettings(data=options.data, samples=count), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    return model, encode(examples, tokenizer, model, max_length=None, groups=1, seed=0)


def part(probes: ProbeSet, start: int, count: int, groups: int) -> ProbeSet:
    """Some of the examples as a probe set of their own."""
    units: list[ProbeUnit] = [unit for half in probes.units for group in half for unit in group]
    return make_probe_set(
        units[start : start + count],
        summary=probes.summary,
        pad_token_id=probes.pad_token_id,
        groups=groups,
        seed=0,
    )


def run(
    model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace, **capture: Any
) -> dict[str, float]:
    """`hls` of every module by a whole run."""
    settings = RankSettings(
        model=ModelSettings(model=options.model),
        capture=CaptureSettings(
            batch_size=options.batch_size, checkpointing=False, estimator="exact", **capture
        ),
        plan=PlanSettings(rank=options.rank),
    )
    found = rank_model(
        model,
        None,  # the probes are tokenized
        identify(model, options.model, None),
        probes,
        settings,
        Silent(),
    )
    assert found is not None
    return {row.module: row.hls or 0.0 for row in found.report.candidates}


def tenth(scores: dict[str, float]) -> set[str]:
    """The best tenth."""
    return set(sorted(scores, key=lambda name: -scores[name])[: max(1, len(scores) // 10)])


def inference_bytes(model: PreTrainedModel, probes: ProbeSet, options: argparse.Namespace) -> int:
    """Peak of forward and backward with gradients at the inputs alone, beside the weights."""

    def work() -> None:
        model.requires_grad_(False)
        group = by_length(probes.sequences)[-options.batch_size :]
        batch = collate(
            group,
            pad_token_id=probes.pad_token_id,
            device=torch.device("cpu"),
        )
        inputs = model.get_input_embeddings()(batch.input_ids).requires_grad_()
        logits = model(
            inputs_embeds=inputs, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        (-token_log_probs(logits, batch.labels).sum()).backward()

    return cpu_peak_bytes(work)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="qwen3-41m")
    parser.add_argument("--data")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time-only", action="store_true", help="compare no choices")
    return parser.parse_args()


def main() -> None:
    """Time, compare, write a dated JSON."""
    options = parse()
    options.checkpointing = False
    torch.set_num_threads(options.threads)
    model, everything = load(options)
    trial_probes = part(everything, 0, options.examples, TRIALS // 2)
    other_probes = part(everything, options.examples, options.examples, TRIALS // 2)
    gradient_probes = part(everything, 0, options.examples, 8)
    trial = partial(run, movement="trial", trials=TRIALS)
    works: dict[str, Callable[[], object]] = {
        "plain training pass": lambda: plain_pass(model, gradient_probes, options, gradients=True),
        "trials": lambda: trial(model, trial_probes, options),
        "gradients": lambda: run(model, gradient_probes, options, movement="gradient"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repeats):
        for name, work in works.items():
            gc.collect()
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
            print(name, round(seconds[name][-1], 2), flush=True)
    plain = seconds["plain training pass"]
    weights = sum(weight.nbytes for weight in model.parameters())
    found: dict[str, Any] = {
        "processor_seconds": {
            name: [round(value, 2) for value in values] for name, values in seconds.items()
        },
        "over_plain_pass": {
            name: round(statistics.median(a / b for a, b in zip(values, plain, strict=True)), 3)
            for name, values in seconds.items()
        },
        "weight_bytes": weights,
    }
    if not options.time_only:
        reference = trial(model, trial_probes, options)
        best = tenth(reference)
        narrow = copy.deepcopy(model).to(torch.bfloat16)
        others = {
            "bfloat16": trial(narrow, trial_probes, options),
            "sign": trial(model, trial_probes, options, trial_optimizer="sign"),
            "rms": trial(model, trial_probes, options, trial_optimizer="rms"),
            "other examples": trial(model, other_probes, options),
        }
        found["tenth"] = len(best)
        found["in_common"] = {name: len(best & tenth(scores)) for name, scores in others.items()}
        # Exact sums of both halves aside, which a sketch does without.
        peak = cpu_peak_bytes(lambda: trial(model, trial_probes, options))
        found["peak_bytes"] = {
            "trials": weights + peak,
            "inference with gradients at the inputs": weights
            + inference_bytes(model, trial_probes, options),
        }
    print(found)
    name = options.model.rstrip("/").rpartition("/")[2]
    print(write_result(f"trial_cost_{name}", {"settings": vars(options), **found}))


if __name__ == "__main__":
    main()
