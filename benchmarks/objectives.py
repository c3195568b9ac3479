"""How much does the probe objective matter for the ranking?

Run it with `python benchmarks/objectives.py`. Two runs of one objective on different probes do not
agree perfectly either, so the built-in probes are split at random into two halves, several times,
and every objective ranks the modules on each half. How two objectives agree on different halves is
compared with how each agrees with itself on different halves. Completions are sampled once per
split; the two halves share no prompt, and so no completion. Preference pairs come from two places:
the built-in ones, whose rejected completion ends in the answer of another probe, and on-policy
ones, a right and a wrong completion of one prompt among those sampled. A control has these with
chosen and rejected swapped at random: its expected gradient is zero, so that whatever order it
gives comes from noise. Variants of the losses are compared on one half, on the same completions,
which a score splits alike whatever the loss.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe, parsed, print_table
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy.stats import kendalltau, spearmanr
from second_model import second_model

from hlscore.flow.rank import rank_model, sample_rollouts
from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_pairs, builtin_rows, wanted_formats
from hlscore.inputs.formats import ExampleSet, Row, example_set
from hlscore.inputs.model import LoadedModel, load_model
from hlscore.planning.budget import parse_budget
from hlscore.records import ModuleRow
from hlscore.rollouts.records import RolloutGroup, RolloutSet
from hlscore.scores.registry import find_score, score_of
from hlscore.settings import (
    CaptureSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    PlanSettings,
    RankSettings,
)
from hlscore.steps import Silent

MODELS = ("builtin:tiny", "qwen3-2m")
BUDGET = "0.1"
# Standard errors are known at the first rank only.
RANKS = (16, 8)
SCORES = ("hls", "tail", "grad_norm")
COLUMNS = tuple(
    (name, rank) for name in SCORES for rank in (RANKS if name != "grad_norm" else RANKS[:1])
)
MEASURES = ("spearman", "kendall", "top", "spearman_within_kind")
# A noise ceiling below this is too near to nothing to divide by.
LEAST_CEILING = 0.1
# Characters of a line of the record.
LINE = 300

SFT = ObjectiveSettings()
GRPO = ObjectiveSettings(objective="grpo", rewards=("exact",), generations=8, max_new_tokens=128)
DPO = ObjectiveSettings(objective="dpo")

CONTROL = "control"
OBJECTIVES = ("sft", "grpo", "dpo built-in", "dpo on-policy", CONTROL)
GRPO_VARIANTS = {
    "dapo": GRPO,
    "grpo": replace(GRPO, loss_type="grpo"),
    "gspo": replace(GRPO, loss_type="gspo"),
    "dr_grpo": replace(GRPO, loss_type="dr_grpo"),
    "dr_grpo, rewards not scaled": replace(GRPO, loss_type="dr_grpo", scale_rewards="none"),
}
DPO_VARIANTS = {"sigmoid": DPO, "ipo": replace(DPO, loss_type="ipo")}

Probes = dict[str, tuple[ObjectiveSettings, ExampleSet | RolloutSet]]
Values = dict[tuple[str, int], np.ndarray]
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that is ranked."""

    name: str  # one of `MODELS`
    settings: ModelSettings  # how it was loaded
    loaded: LoadedModel  # the model, its tokenizer and its identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run."""

    # Rows of the modules that have a tail at every rank, in the order of their names.
    rows: tuple[ModuleRow, ...]
    values: Values  # their scores, by name and rank
    figures: dict[str, Any]  # what the result file says of the run


# --- running ----------------------------------------------------------------------------------


def load(name: str, device: str) -> Subject:
    """Load a model, and train it first where it is the second one and not there yet."""
    path = name if name == MODELS[0] else str(second_model())
    settings = ModelSettings(model=path, device=device)
    return Subject(name=name, settings=settings, loaded=load_model(settings))


def settings_of(subject: Subject, objective: ObjectiveSettings, seed: int) -> RankSettings:
    """Settings of one run: exact gradients, all probes that are given."""
    return RankSettings(
        model=subject.settings,
        data=DataSettings(samples=0),
        objective=objective,
        capture=CaptureSettings(checkpointing=False, estimator="exact", movement="gradient"),
        plan=PlanSettings(rank=RANKS[0], budget=BUDGET),
        seed=seed,
    )


def examples_of(rows: Sequence[Row], objective: ObjectiveSettings, source: str) -> ExampleSet:
    """Rows as the examples of an objective."""
    return example_set(rows, source, DataSettings(samples=0), wanted_formats(objective))


def sample(subject: Subject, rows: Sequence[Row], seed: int) -> RolloutSet:
    """Let the model complete every prompt and judge what it wrote."""
    loaded, settings = subject.loaded, settings_of(subject, GRPO, seed)
    examples = examples_of(rows, GRPO, BUILTIN_KNOWN)
    return sample_rollouts(
        loaded.model, loaded.tokenizer, loaded.identity, examples, settings, Silent()
    )


def on_policy_pairs(groups: Sequence[RolloutGroup], seed: int) -> list[Row]:
    """A right and a wrong completion of each prompt that has both, drawn at random.

    Returns:
        Rows with `prompt`, `chosen` and `rejected`. Completions cut short are left out: as text
        they would end in an end token.
    """
    pairs: list[Row] = []
    for group in groups:
        whole = [item for item in group.rollouts if not item.truncated]
        right, wrong = ([item for item in whole if item.reward == value] for value in (1.0, 0.0))
        if right and wrong:
            draw = random.Random(f"{seed}:{group.name}")
            chosen, rejected = draw.choice(right), draw.choice(wrong)
            pairs.append({
                "prompt": chosen.prompt, "chosen": chosen.completion,
                "rejected": rejected.completion,
            })  # fmt: skip
    return pairs


def swapped(pairs: Sequence[Row], seed: int) -> list[Row]:
    """Pairs of which about every other has its chosen and rejected completion swapped."""
    draw = random.Random(seed)
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        if draw.random() < 0.5
        else row
        for row in pairs
    ]


def run(
    subject: Subject, examples: ExampleSet | RolloutSet, objective: ObjectiveSettings, seed: int
) -> Outcome:
    """Score every module once."""
    gc.collect()
    loaded, began = subject.loaded, time.perf_counter()
    found = rank_model(
        loaded.model,
        loaded.tokenizer,
        loaded.identity,
        examples,
        settings_of(subject, objective, seed),
        Silent(),
    )
    assert found is not None
    report = found.report
    every = sorted(report.candidates, key=lambda row: row.module)
    rows = tuple(row for row in every if row.max_rank > max(RANKS))
    values = {
        (name, rank): np.array([score_of(row, find_score(name), rank) for row in rows], dtype=float)
        for name, rank in COLUMNS
    }
    probes = report.probes
    figures: dict[str, Any] = {
        "units": probes.examples,
        "counted_tokens": probes.counted_tokens,
        "clear": sum(row.hls_ci_low > 0 for row in rows),
        "modules": len(rows),
        "median_hls_over_stderr": float(np.median([row.hls / row.hls_stderr for row in rows])),
        "median_hls_over_tail": float(np.median([row.hls / row.tail for row in rows])),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if probes.rollouts is not None:
        figures["groups_with_signal"] = probes.rollouts.carrying
        figures["mean_reward"] = probes.rollouts.mean_reward
        figures["completions_truncated"] = probes.rollouts.truncated
    return Outcome(rows=rows, values=values, figures=figures)


# --- comparing --------------------------------------------------------------------------------


def agreement(one: Outcome, other: Outcome, column: tuple[str, int]) -> Figures:
    """How two runs agree on the order of the modules.

    Returns:
        Every measure; `top` is the share of the modules that the budget allows which both put
        first, and the last one is the mean over module kinds of Spearman's rho over the layers.
    """
    x, y = one.values[column], other.values[column]
    count = parse_budget(BUDGET).limit([row.n_params for row in one.rows])
    first = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (x, y)]
    kinds = np.array([row.kind for row in one.rows])
    inside = [
        spearman(x[kinds == kind], y[kinds == kind])
        for kind in sorted(set(kinds.tolist()))
        if (kinds == kind).sum() >= 3
    ]
    return {
        "spearman": spearman(x, y),
        "kendall": float(kendalltau(x, y).statistic),
        "top": len(first[0] & first[1]) / count,
        "spearman_within_kind": float(np.mean(inside)) if inside else None,
    }


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(x, y).statistic)


def summary(items: Sequence[Figures]) -> dict[str, Any]:
    """Mean and range of every measure."""
    found: dict[str, Any] = {"pairs": len(items)}
    for measure in MEASURES:
        known = [item[measure] for item in items if item[measure] is not None]
        found[measure] = {"mean": float(np.mean(known)), "low": min(known), "high": max(known)}
    return found


Halves = dict[str, list[tuple[Outcome, Outcome]]]


def compare(halves: Halves, column: tuple[str, int]) -> dict[str, Any]:
    """Agreement within and between objectives, for one score."""
    within = {name: [agreement(a, b, column) for a, b in runs] for name, runs in halves.items()}
    between = []
    for one, other in combinations(halves, 2):
        pairs = list(zip(halves[one], halves[other], strict=True))
        crossed = [[agreement(x, v, column), agreement(y, u, column)] for (x, y), (u, v) in pairs]
        same = [agreement(*two, column) for both in pairs for two in zip(*both, strict=True)]
        between.append(
            {
                "objectives": [one, other],
                "other_probes": summary([item for split in crossed for item in split]),
                "spearman_same_probes": float(np.mean([item["spearman"] for item in same])),
                "ceiling": _against_ceiling(
                    [[split["spearman"] for split in within[name]] for name in (one, other)],
                    [[item["spearman"] for item in split] for split in crossed],
                ),
            }
        )
    return {
        "score": column[0],
        "rank": column[1],
        "within": {name: summary(items) for name, items in within.items()},
        "with_size": {
            name: float(
                np.mean(
                    [
                        spearman(item.values[column], np.array([r.n_params for r in item.rows]))
                        for pair in runs
                        for item in pair
                    ]
                )
            )
            for name, runs in halves.items()
        },
        "mean_place_by_kind": {name: _places(runs, column) for name, runs in halves.items()},
        "between": between,
    }


def _against_ceiling(
    within: Sequence[Sequence[float]], crossed: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Agreement between two objectives against what noise alone leaves of it.

    Were both the same but for noise, the agreement between them would be about the geometric
    mean of the agreements within each (Spearman's correction for attenuation).
    """
    first, second = (np.array(values, dtype=float) for values in within)
    ceilings = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
    gaps = np.array(crossed, dtype=float).mean(1) - ceilings
    ceiling = math.sqrt(max(first.mean(), 0) * max(second.mean(), 0))
    mean = float(np.mean(np.array(crossed, dtype=float)))
    return {
        "ceiling": ceiling,
        "between_over_ceiling": mean / ceiling if ceiling > LEAST_CEILING else None,
        "gap": {"mean": float(gaps.mean()), "low": float(gaps.min()), "high": float(gaps.max())},
        "splits_below": int((gaps < 0).sum()),
        "splits": len(gaps),
    }


def _places(runs: Sequence[tuple[Outcome, Outcome]], column: tuple[str, int]) -> dict[str, float]:
    """Mean place of the modules of each kind, 1 is the first."""
    rows = runs[0][0].rows
    places = np.mean(
        [np.argsort(np.argsort(-item.values[column])) + 1 for pair in runs for item in pair], axis=0
    )
    kinds = sorted({row.kind for row in rows})
    return {
        kind: round(float(places[[row.kind == kind for row in rows]].mean()), 1) for kind in kinds
    }


def variant_rows(base: str, runs: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """Variants of a loss against the first of them."""
    found = []
    for name, item in runs.items():
        ours, theirs = (each.values[SCORES[0], RANKS[0]] for each in (item, runs[base]))
        found.append(
            {
                "variant": name,
                "against": base,
                "clear": item.figures["clear"],
                "scores": {
                    score: agreement(runs[base], item, (score, RANKS[0])) for score in SCORES
                },
                "largest_difference_of_hls_over_largest_hls": float(
                    np.abs(ours - theirs).max() / np.abs(theirs).max()
                ),
            }
        )
    return found


# --- measuring --------------------------------------------------------------------------------


def measure(
    subject: Subject, options: argparse.Namespace, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Run one model with every objective on every half, and the variants on one."""
    places = range(len(builtin_rows(BUILTIN_KNOWN)))
    if options.probes:
        places = sorted(random.Random(0).sample(places, options.probes))
    rows = [builtin_rows(BUILTIN_KNOWN)[place] for place in places]
    pairs = [builtin_pairs(BUILTIN_KNOWN)[place] for place in places]
    halves: Halves = {name: [] for name in OBJECTIVES}
    runs: list[dict[str, Any]] = []
    seconds = []
    everything: dict[str, Outcome] = {}
    variants: dict[str, Any] = {}
    for seed in range(options.seeds):
        advance("sampling")
        began = time.perf_counter()
        rollouts = sample(subject, rows, seed)
        seconds.append(round(time.perf_counter() - began, 2))
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        parts = (sorted(order[: len(order) // 2]), sorted(order[len(order) // 2 :]))
        given = [_given(rows, pairs, rollouts, part, seed) for part in parts]
        done = [_each_objective(subject, part, seed, advance) for part in given]
        for name in OBJECTIVES:
            halves[name].append((done[0][name], done[1][name]))
            runs += [
                {"objective": name, "seed": seed, "half": half, **item[name].figures}
                for half, item in enumerate(done)
            ]
        if seed == 0:
            whole = _given(rows, pairs, rollouts, range(len(rows)), seed)
            everything = _each_objective(subject, whole, seed, advance)
            variants = _variants(subject, given[0], done[0], advance)
    return {
        "model": subject.name,
        "parameters": sum(item.numel() for item in subject.loaded.model.parameters()),
        "modules": len(everything["sft"].rows),
        "probes": len(rows),
        "sampling_seconds": seconds,
        "chance_top": parse_budget(BUDGET).limit([row.n_params for row in everything["sft"].rows])
        / len(everything["sft"].rows),
        "runs": runs,
        "runs_on_all_probes": {name: item.figures for name, item in everything.items()},
        "comparisons": [compare(halves, column) for column in COLUMNS],
        "variants_on_one_half": variants,
    }


def _given(
    rows: Sequence[Row], pairs: Sequence[Row], rollouts: RolloutSet, part: Sequence[int], seed: int
) -> Probes:
    """What each objective gets of some of the probes."""
    chosen = {str(place) for place in part}
    groups = tuple(group for group in rollouts.groups if group.name in chosen)
    own = on_policy_pairs(groups, seed)
    return {
        "sft": (SFT, examples_of([rows[place] for place in part], SFT, BUILTIN_KNOWN)),
        "grpo": (GRPO, replace(rollouts, groups=groups)),
        "dpo built-in": (DPO, examples_of([pairs[place] for place in part], DPO, BUILTIN_KNOWN)),
        "dpo on-policy": (DPO, examples_of(own, DPO, "on-policy pairs")),
        CONTROL: (DPO, examples_of(swapped(own, seed), DPO, "swapped pairs")),
    }


def _each_objective(
    subject: Subject, given: Probes, seed: int, advance: Callable[[str], None]
) -> dict[str, Outcome]:
    done = {}
    for name, (objective, examples) in given.items():
        advance(name)
        done[name] = run(subject, examples, objective, seed)
    return done


def _variants(
    subject: Subject, given: Probes, known: Mapping[str, Outcome], advance: Callable[[str], None]
) -> dict[str, Any]:
    """Loss types on some probes; the default of each objective was run already."""
    families = {"grpo": GRPO_VARIANTS, "dpo built-in": DPO_VARIANTS, "dpo on-policy": DPO_VARIANTS}
    found: dict[str, Any] = {}
    for family, variants in families.items():
        base, *others = variants
        runs = {base: known[family]}
        for name in others:
            advance(f"{family}, {name}")
            runs[name] = run(subject, given[family][1], variants[name], 0)
        found[family] = variant_rows(base, runs)[1:]
        if family == "grpo":
            found["gspo against grpo"] = variant_rows(
                "grpo", {name: runs[name] for name in ("grpo", "gspo")}
            )[1:]
    return found


def jobs(seeds: int) -> int:
    """Number of times that `measure` tells what begins."""
    variants = len(GRPO_VARIANTS) - 1 + 2 * (len(DPO_VARIANTS) - 1)
    return seeds * (1 + 2 * len(OBJECTIVES)) + len(OBJECTIVES) + variants


def rounded(content: Any) -> Any:
    """The same with numbers of four digits, which is more than they are worth."""
    if isinstance(content, Mapping):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content


def compact(content: Any, indent: str = "") -> str:
    """JSON with what fits into a line on one line."""
    line = json.dumps(content)
    if len(indent) + len(line) <= LINE or not isinstance(content, Mapping | list | tuple):
        return line
    inner = indent + " "
    if isinstance(content, Mapping):
        left, right = "{", "}"
        parts = [f"{json.dumps(key)}: {compact(item, inner)}" for key, item in content.items()]
    else:
        left, right = "[", "]"
        parts = [compact(item, inner) for item in content]
    return f"{left}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{right}"


# --- telling ----------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spread(item: Mapping[str, Any]) -> str:
    return f"{_number(item['mean'])} ({_number(item['low'])} to {_number(item['high'])})"


def show(content: Mapping[str, Any]) -> None:
    """Print what was found for one model."""
    rows = []
    for name in OBJECTIVES:
        halves = [item for item in content["runs"] if item["objective"] == name]
        for label, items in (("half", halves), ("all", [content["runs_on_all_probes"][name]])):
            means = {key: np.mean([item[key] for item in items]) for key in items[0]
                     if isinstance(items[0][key], int | float)}  # fmt: skip
            clear = [item["clear"] for item in items]
            rows.append((
                name, label, f"{means['units']:.0f}",
                f"{means['clear']:.1f} ({min(clear)} to {max(clear)})",
                f"{means['median_hls_over_stderr']:.2f}", f"{means['median_hls_over_tail']:.3f}",
                *(f"{means[key]:.{digits}f}" if key in means else ""
                  for key, digits in (("groups_with_signal", 0), ("mean_reward", 3))),
                f"{means['seconds']:.1f}",
            ))  # fmt: skip
    print(f"{content['model']}: {content['modules']} modules, {content['probes']} probes")
    print_table(
        ("objective", "probes", "units", "hls > 0 (95 %)", "median hls / stderr", "hls / tail",
         "groups with signal", "mean reward", "seconds"),
        rows, title="Runs: means over halves; all probes",
    )  # fmt: skip
    for comparison in content["comparisons"]:
        title = f"{comparison['score']}, rank {comparison['rank']}"
        print_table(
            ("objective", "Spearman", "Kendall", "top tenth", "within kinds", "with size"),
            [
                (name, *(_spread(item[measure]) for measure in MEASURES),
                 _number(comparison["with_size"][name]))
                for name, item in comparison["within"].items()
            ],
            title=f"{title}: within an objective, other probes",
        )  # fmt: skip
        rows = []
        for item in comparison["between"]:
            against, others = item["ceiling"], item["other_probes"]
            rows.append((
                " / ".join(item["objectives"]), _spread(others["spearman"]),
                _number(against["ceiling"]), _number(against["between_over_ceiling"]),
                f"{against['splits_below']} of {against['splits']}",
                *(_number(others[measure]["mean"]) for measure in MEASURES[1:]),
                _number(item["spearman_same_probes"]),
            ))  # fmt: skip
        print_table(
            ("objectives", "Spearman", "ceiling", "over ceiling", "splits below", "Kendall",
             "top tenth", "within kinds", "Spearman, same probes"),
            rows, title=f"{title}: between objectives, other probes",
        )  # fmt: skip
    print_table(
        ("family", "variant", "against", "hls > 0 (95 %)",
         *(f"{score}: Spearman, top tenth" for score in SCORES), "largest difference of hls"),
        [
            (family, item["variant"], item["against"], item["clear"],
             *(f"{each['spearman']:.3f}, {each['top']:.2f}" for each in item["scores"].values()),
             f"{item['largest_difference_of_hls_over_largest_hls']:.1e}")
            for family, items in content["variants_on_one_half"].items()
            for item in items
        ],
        title=f"Loss types on one half, same completions, rank {RANKS[0]}",
    )  # fmt: skip


def main() -> None:
    """Run, print tables, write a dated JSON."""
    options = parsed(
        __doc__, models={"nargs": "+", "default": list(MODELS), "choices": MODELS},
        seeds={"type": int, "default": 4, "help": "random splits of the probes"},
        probes={"type": int, "default": 0, "help": "of the built-in ones; 0 means all"},
        quick={"action": "store_true", "help": "1 split of 32 probes; no record"},
        threads=1, device="cpu",
        out={"type": Path, "help": "file of the record, instead of a dated one"},
    )  # fmt: skip
    if options.quick:
        options.seeds, options.probes = 1, 32
    began = time.perf_counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    results = []
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(options.models) * jobs(options.seeds), completed=-1)
        for name in options.models:
            subject = load(name, options.device)

            def advance(what: str, name: str = name) -> None:
                progress.update(task, description=f"{name}: {what}", advance=1)

            results.append(measure(subject, options, advance))
    for content in results:
        show(content)
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    sampling = {
        key: getattr(GRPO, key)
        for key in ("rewards", "generations", "max_new_tokens", "generate_batch")
    }
    today = datetime.now(tz=UTC).date().isoformat()
    record = {
        "date": today,
        "machine": describe(),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "settings": {**settings, "ranks": RANKS, "budget": BUDGET, "estimator": "exact"},
        "sampling": {**sampling, "temperature": GRPO.temperature_value},
        "results": rounded(results),
    }
    path = options.out
    if path is None and not options.quick:
        path = RESULTS / f"objectives_{today}.json"
    if path is not None:
        path.write_text(compact(record) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
