"""Trains two steps with the real trainers, from exported plans, and holds the result against them.

    python tests/trainers/run.py [axolotl] [llama_factory] [ms_swift]

Each trainer wants versions of its own, so each gets a virtual environment under .venv-trainers/,
made from the file with its name here (1.4 to 3 GB each; made again when that file changes). No GPU
and no model hub is needed. The table is printed and written to tests/trainers/RESULTS.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from material import PLANS, make

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-trainers"
TORCH = "torch==2.13.0"
SEED = "seed-adapter"
SECONDS = 600

QUIET = {
    "HF_HUB_OFFLINE": "1", "USE_HF": "1", "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training: with which trainer, of which plan, and whether from the seed adapter."""

    trainer: str
    plan: str
    seed: bool = False

    @property
    def config(self) -> str:
        """The exported file, from the folder of the material."""
        # Not every plan can be written for every trainer; the seed adapter carries the plan anyway.
        own = not self.seed or self.trainer == "axolotl" or self.plan == "experts"
        return f"{self.plan if own else 'hybrid'}/{self.trainer}.yaml"

    @property
    def start(self) -> str:
        """Where training starts, for the table."""
        return f"the seed adapter and {self.config}" if self.seed else self.config


CASES = (
    *(Case("axolotl", plan) for plan in PLANS),
    *(Case("axolotl", plan, seed=True) for plan in ("ranks", "full", "experts")),
    *(Case("llama_factory", plan) for plan in ("hybrid", "lora")),
    *(Case("llama_factory", plan, seed=True) for plan in ("ranks", "full")),
    *(Case("ms_swift", plan) for plan in ("hybrid", "full", "lora", "experts")),
    *(Case("ms_swift", plan, seed=True) for plan in ("ranks", "full", "experts")),
)


def main() -> int:
    """Run the cases of the trainers asked for.

    Returns:
        0 if every trainer did what the plans say.
    """
    trainers = tuple(dict.fromkeys(case.trainer for case in CASES))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trainer", nargs="*", help=f"of {', '.join(trainers)}; all by default")
    asked = parser.parse_args().trainer or trainers
    if unknown := set(asked) - set(trainers):
        parser.error(f"no such trainer: {', '.join(sorted(unknown))}")
    rows, whole = [], set(asked) == set(trainers)
    with tempfile.TemporaryDirectory(prefix="hlscore-trainers-") as name:
        folder = Path(name)
        material = folder / "material"
        make(material)
        for case in CASES:
            if case.trainer in asked:
                rows.append(_run(case, material, folder))
                print(rows[-1], flush=True)
    if whole:
        (HERE / "RESULTS.md").write_text(_report(rows))
    return 0 if all(row.endswith("yes |") for row in rows) else 1


def _environment(trainer: str) -> Path:
    """The Python of a trainer's environment, made if it is not there or not up to date."""
    wanted = HERE / f"{trainer}.txt"
    folder = ENVIRONMENTS / trainer
    python, ready = folder / "bin" / "python", folder / "ready"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not ready.is_file() or ready.read_text() != digest:
        print(f"making {folder.relative_to(ROOT)}", flush=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # First and alone, so that pip takes the build that its settings name, such as one for CPU.
        subprocess.run([*pip, TORCH], check=True)
        subprocess.run([*pip, "--no-deps", "-r", str(wanted)], check=True)
        ready.write_text(digest)
    return python


def _run(case: Case, material: Path, folder: Path) -> str:
    result = folder / f"{case.trainer}-{case.plan}-{'seed' if case.seed else 'config'}.json"
    seed = str(material / case.plan / SEED) if case.seed else ""
    arguments = [case.trainer, str(material), case.plan, case.config, seed, str(result)]
    done = subprocess.run(
        [str(_environment(case.trainer)), str(HERE / "train.py"), *arguments],
        env={**os.environ, **QUIET}, cwd=folder, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    planned = f"{PLANS[case.plan][-1]} | {case.start}"
    if done.returncode or not result.is_file():
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        return f"| {case.trainer} | | {planned} | | no: it failed |"
    found = json.loads(result.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    faults = found["faults"] + _audit(material / case.plan / "plan.json", result.with_suffix(""))
    verdict = "yes" if not faults else f"no: {'; '.join(faults[:3])}"
    changed = f"{found['changed']} of {found['planned']}"
    return f"| {found['trainer']} | {versions} | {planned} | {changed} | {verdict} |"


def _audit(plan: Path, adapter: Path) -> list[str]:
    """What `hlscore audit` finds otherwise than planned in a trained adapter."""
    base = json.loads(plan.read_text())["model"]["name"]
    words = ["audit", str(adapter), "--model", base, "--plan", str(plan), "--json"]
    report = ["-o", str(adapter.with_suffix(".parquet")), "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "hlscore", *words, *report],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"audit: {done.stderr.strip()}"]
    against = json.loads(done.stdout)["plan"]
    return [
        f"audit: {kind} {', '.join(against[kind][:3])}"
        for kind in ("frozen_moved", "trained_unmoved", "other_rank")
        if against[kind]
    ]


def _report(rows: list[str]) -> str:
    header = "| trainer | with | plan | trained from | tensors changed, planned | as planned |"
    lines = (
        "# Plans in real trainers",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, no GPU; written by "
        "`make test-trainers`.",
        "",
        "Each trainer reads the exported file with its own classes, none of its keys may be lost, "
        "and trains two steps in float32 of a Llama with 11 layers or a Mixtral with 2. The "
        "adapter that it saves is merged. The tensors that then differ from the base model must be "
        "those of the plan, each linear layer must have the plan's rank, and the largest step of "
        "each full linear layer must be one that its learning rate makes in two steps. "
        "`hlscore audit` must find the same modules and ranks in the adapter's files. What was "
        "changed in the file: data set, device, precision, two steps, and for a start from the "
        "seed adapter the path to it in place of the keys that it carries. LLaMA-Factory imports "
        "torchaudio for audio only; an empty module stands in for it.",
        "",
        header,
        "|---|---|---|---|---|---|",
        *rows,
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
