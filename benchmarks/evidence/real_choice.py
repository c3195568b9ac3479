"""Does the tenth that trials choose come back from other examples, and do more of them help?

`python benchmarks/evidence/real_choice.py --task letter_jumble` ranks SmolLM2-135M-Instruct by
trials twice for each setting, from examples that have none in common, and writes
`results/real_choice_DATE.json` after each. What a choice is worth: `real_study.py`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from arms import Planner, full_modules
from published import write_result
from real_study import RANK, loaded, ranked
from real_tasks import FOLDER, MODELS, read

from hlscore.records import ScoreReport
from hlscore.settings.plan import GatedPairs

# Examples, trials, and steps of each.
SETTINGS = ((256, 4, 8), (1024, 4, 8))
PAIRS: tuple[GatedPairs, ...] = ("both", "one")


def compared(first: ScoreReport, second: ScoreReport) -> dict[str, Any]:
    """How far the plans of two reports of one model agree."""
    planners = [Planner(report=report, rank=RANK) for report in (first, second)]
    found: dict[str, Any] = {}
    for pairs in PAIRS:
        plans = [planner.scored("hls", gated_pairs=pairs) for planner in planners]
        chosen = [set(full_modules(plan)) for plan in plans]
        found[f"gated pairs {pairs}"] = {
            "full": len(chosen[0]),
            "common": len(chosen[0] & chosen[1]),
            # The share of resamples of a run's own probes that choose what it chose.
            "mean_reselection": [plan.stability.mean_reselection for plan in plans],
        }
    return found


def main() -> None:
    """Rank and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="letter_jumble")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model, tokenizer = loaded(MODELS / "smollm2", options.device)
    rows = read(options.task, FOLDER)["train"]
    found = []
    for examples, trials, steps in SETTINGS:
        reports, seconds = [], []
        for start in (0, examples):
            began = time.monotonic()
            result = ranked(
                model, tokenizer, rows[start : start + examples], movement="trial",
                trials=trials, trial_steps=steps,
            )  # fmt: skip
            reports.append(result.report)
            seconds.append(round(time.monotonic() - began))
        entry = {
            "examples": examples, "trials": trials, "steps": steps,
            "rates": [report.run.trial_rate for report in reports], "seconds": seconds,
            **compared(*reports),
        }  # fmt: skip
        print(entry, flush=True)
        found.append(entry)
        content = {"model": "SmolLM2-135M-Instruct", "task": options.task, "rank": RANK}
        print(write_result("real_choice", {**content, "runs": found}), flush=True)


if __name__ == "__main__":
    main()
