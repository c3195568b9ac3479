"""Do trials foresee what full fine-tuning moves, and at which learning rate do they best?

`python benchmarks/evidence/real_foresight.py --task letter_jumble` scores the weight update of a
whole full fine-tuning of SmolLM2-135M-Instruct as `hls` scores that of trials, then ranks by first
gradients, by trials at the rate that they find, at higher ones and longer, and writes
`results/real_foresight_DATE.json`, beside the ways that the newest such file holds. What the
choices are worth: `real_study.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from arms import Planner, full_modules
from published import latest, write_result
from real_study import (
    FINISHED,
    JOURNALS,
    LAST_LAYERS,
    RANK,
    SAMPLES,
    WAYS,
    Clock,
    arm_named,
    loaded,
    opened,
)
from real_tasks import FOLDER, MODELS
from scipy.stats import spearmanr

import hlscore
from hlscore.records import ScoreReport


def against(report: ScoreReport, finished: ScoreReport) -> dict[str, Any]:
    """How far the scores and the tenth of a report agree with those of a finished training."""
    rows = {row.module: row for row in report.candidates}
    pairs = [(rows[row.module], row) for row in finished.candidates]
    most = max(row.n_params for row in finished.candidates)
    found = [tenth(report), tenth(finished)]

    def order(largest: bool) -> float:
        kept = [pair for pair in pairs if not largest or pair[1].n_params == most]
        return round(float(spearmanr([a.hls for a, _ in kept], [b.hls for _, b in kept])[0]), 3)

    return {
        "common": len({*found[0]} & {*found[1]}), "of": len(found[1]), "spearman": order(False),
        "spearman_of_the_largest": order(True),
        "mean_layer": round(mean(rows[name].layer or 0 for name in found[0]), 1),
    }  # fmt: skip


def tenth(report: ScoreReport) -> tuple[str, ...]:
    """The modules that `hls` alone would train in full."""
    return full_modules(Planner(report=report, rank=RANK).scored("hls"))


def main() -> None:
    """Score and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="letter_jumble")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", action="append", choices=tuple(WAYS), help="only this one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of tasks and scores")
    parser.add_argument("--journals", type=Path, default=JOURNALS)
    options = parser.parse_args()
    model, tokenizer = loaded(MODELS / "smollm2", options.device)
    study = opened(
        options.task, model, tokenizer, folder=options.folder, journals=options.journals,
        steps=250, clock=Clock(ends=float("inf")),
    )  # fmt: skip
    finished = study.report(FINISHED)
    before = latest("real_foresight")
    found = before["ways"] if before.get("task") == options.task else {}
    for name in options.way or WAYS:
        try:
            report = study.report(name)
        except hlscore.HlscoreError as error:
            found[name] = {"error": str(error)}
        else:
            found[name] = {
                **against(report, finished), "rate": report.run.trial_rate,
                "notes": report.run.notes, "seconds": round(report.run.wall_seconds),
            }  # fmt: skip
        print(name, found[name], flush=True)
    last = set(arm_named(study, LAST_LAYERS).full) & {*tenth(finished)}
    found["the largest of the last layers"] = {"common": len(last)}
    content = {"model": "SmolLM2-135M-Instruct", "task": options.task, "rank": RANK,
               "examples": SAMPLES, "ways": found}  # fmt: skip
    print(write_result("real_foresight", content), flush=True)


if __name__ == "__main__":
    main()
