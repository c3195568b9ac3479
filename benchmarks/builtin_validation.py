"""Does a plan for the built-in model recover the gap: long and short trials, gradients, more alpha?

`python benchmarks/builtin_validation.py` ranks `builtin:tiny` in each way and runs
`hlscore validate` on each plan: its default of 60 steps and 3 seeds, every arm at learning rates of
its own. What `validate` writes is kept whole, with its machine and versions. `--plan trial` runs
one of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import parsed, write_result

MODEL = "builtin:tiny"
_FEW = ("--samples", "256")
_ONE_OF_PAIR = (*_FEW, "--gated-pairs", "one")
_SHORT = ("--movement", "trial", "--trial-steps", "8", *_ONE_OF_PAIR)
# How each plan is made: by default, and as results of earlier versions were by default.
PLANS = {
    "default": (),
    "trial": _SHORT,
    "gradient": ("--movement", "gradient", *_FEW),
    "share": ("--movement", "gradient", "--score", "hls_share", *_ONE_OF_PAIR),
    # The scaling that rsLoRA gives LoRA of rank 16 with an alpha of twice the rank.
    "alpha": (*_SHORT, "--alpha", "128"),
}


def hlscore(*arguments: str) -> None:
    """Run a command in a process of its own."""
    subprocess.run([sys.executable, "-m", "hlscore", *arguments], check=True)  # noqa: S603


def main() -> None:
    """Rank, validate, write a dated JSON for each plan."""
    options = parsed(__doc__, plan={"choices": PLANS, "action": "append"}, steps=60)
    for name in options.plan or PLANS:
        with tempfile.TemporaryDirectory() as folder:
            hlscore("rank", MODEL, "--budget", "0.1", *PLANS[name], "-o", folder, "--top", "5")
            hlscore(
                "validate", MODEL, "--plan", f"{folder}/plan.json", "-o", folder,
                "--steps", str(options.steps),
            )  # fmt: skip
            found = json.loads((Path(folder) / "validation.json").read_text())
        print(write_result(f"builtin_validation_{name}", found))


if __name__ == "__main__":
    main()
