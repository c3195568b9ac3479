"""Options that several commands share, with their help in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hlscore.errors import UsageError

MODEL_PANEL = "Model"
DATA_PANEL = "Probe data"
MODULES_PANEL = "Modules"
CAPTURE_PANEL = "Capture"
PLAN_PANEL = "Plan"
OUTPUT_PANEL = "Output"

Model = Annotated[
    str, typer.Argument(help="Hub id, local directory, or builtin:tiny.", show_default=False)
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        help="Branch, tag or commit of a hub model.",
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option(
        "--dtype",
        help="Dtype of the weights; auto: as stored, but never float16 on a CPU.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=MODEL_PANEL),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Accept .bin weights, which can run code when opened.",
        rich_help_panel=MODEL_PANEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model.",
        rich_help_panel=MODEL_PANEL,
    ),
]
TextOnly = Annotated[
    bool,
    typer.Option(
        "--text-only",
        help="Load the text-only class of a checkpoint with other inputs too.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Include = Annotated[
    list[str],
    typer.Option(
        "--include",
        help="Rank only modules whose full name matches this glob (repeatable).",
        rich_help_panel=MODULES_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option(
        "--exclude",
        help="Leave out modules whose full name matches this glob (repeatable).",
        rich_help_panel=MODULES_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
Embeddings = Annotated[
    bool,
    typer.Option(
        "--embeddings", help="Rank the input embedding too.", rich_help_panel=MODULES_PANEL
    ),
]
Head = Annotated[
    bool, typer.Option("--head", help="Rank the output head too.", rich_help_panel=MODULES_PANEL)
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        help="Spread the weights over the processes that torchrun started.",
        rich_help_panel=MODEL_PANEL,
    ),
]
EstimatorOption = Annotated[
    Literal["auto", "exact", "sketch"],
    typer.Option(
        "--estimator",
        help="exact: float32 sums of every gradient. sketch: random projections, in little more "
        "memory than inference. auto: exact while it fits.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
SketchSize = Annotated[
    int | None,
    typer.Option(
        "--sketch-size",
        help="Columns of a sketch: more are more exact.",
        show_default="4 x rank, at least 64",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
Passes = Annotated[
    int,
    typer.Option(
        "--passes",
        help="Passes over the probes: 1, or 3 for a power iteration that sharpens sketches.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
AccumulateOn = Annotated[
    Literal["device", "host"],
    typer.Option(
        "--accumulate-on",
        help="Where the sums of the exact estimator are kept.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
MovementOption = Annotated[
    Literal["auto", "gradient", "trial", "update"],
    typer.Option(
        "--movement",
        help="What is scored: first gradients, or weight updates of trials or of --update.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
Updates = Annotated[
    list[str],
    typer.Option(
        "--update",
        metavar="CHECKPOINT",
        help="Score a finished training instead of probes: a fine-tuned model or PEFT adapter, "
        "read beside MODEL. Repeat for further runs.",
        rich_help_panel=CAPTURE_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
Trials = Annotated[
    int,
    typer.Option(
        "--trials",
        help="Trial trainings, an even number; each has its own probes.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
TrialSteps = Annotated[
    int,
    typer.Option(
        "--trial-steps", help="Optimizer steps of each trial.", rich_help_panel=CAPTURE_PANEL
    ),
]
TrialRate = Annotated[
    float | None,
    typer.Option(
        "--trial-rate",
        help="Learning rate of the trials.",
        show_default="found by a few steps at several rates",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
TrialOptimizerOption = Annotated[
    Literal["factored", "sign", "rms"],
    typer.Option(
        "--trial-optimizer",
        help="Optimizer of the trials: Adafactor without momentum, sign, or unit RMS.",
        rich_help_panel=CAPTURE_PANEL,
    ),
]
SaveEvery = Annotated[
    float,
    typer.Option(
        "--save-every",
        min=0,
        help="Seconds between two writes of the progress; 0 turns them off.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the unfinished run in the folder of the results.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
BudgetOption = Annotated[
    str,
    typer.Option(
        "--budget",
        "-b",
        help="0.1: 10 % of the candidate modules in full. 0.1p: 10 % of their parameters. 500M: "
        "that many parameters. 24GiB: training memory.",
        rich_help_panel=PLAN_PANEL,
    ),
]
Alpha = Annotated[
    int | None,
    typer.Option(
        "--alpha",
        help="LoRA alpha of the plan.",
        show_default="twice the rank",
        rich_help_panel=PLAN_PANEL,
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        help="LoRA ranks to choose from for each module, such as 4,8,16,32,64; frozen and full "
        "are always among the choices. The budget then holds everything that is trained.",
        rich_help_panel=PLAN_PANEL,
        show_default="one rank for all",
    ),
]
MinRank = Annotated[
    int,
    typer.Option(
        "--min-rank",
        help="With --ranks: least LoRA rank of every module; 0 may freeze modules.",
        rich_help_panel=PLAN_PANEL,
    ),
]
ValuePower = Annotated[
    float,
    typer.Option(
        "--value-power",
        metavar="POWER",
        help="With --ranks: a rank is worth the gradient energy that it reaches to this power, "
        "above 0 to 1. Lower spreads ranks more evenly.",
        rich_help_panel=PLAN_PANEL,
    ),
]
Locks = Annotated[
    list[str],
    typer.Option(
        "--lock",
        help="Pin modules: PATTERN=full, =lora, =frozen or =rank:N (repeatable; the last that "
        "matches counts).",
        rich_help_panel=PLAN_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
BaselineOption = Annotated[
    Literal["lora-matched", "random", "largest", "random-largest", "all-lora", "all-full"] | None,
    typer.Option(
        "--baseline",
        help="Write a plan to compare with instead: LoRA of equal size, a random choice, the "
        "largest modules, LoRA or full everywhere.",
        rich_help_panel=PLAN_PANEL,
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Hub id, .jsonl .json .csv .parquet .arrow file, directory, "
        "builtin:new or builtin:known.",
        show_default="builtin:new; builtin:known for grpo and dpo",
        rich_help_panel=DATA_PANEL,
    ),
]
DataConfig = Annotated[
    str | None,
    typer.Option(
        "--data-config",
        help="Configuration of a hub data set that has several.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
Split = Annotated[str, typer.Option("--split", help="Split to read.", rich_help_panel=DATA_PANEL)]
Columns = Annotated[
    list[str],
    typer.Option(
        "--column",
        help="Map a column, such as prompt=question (roles: text, messages, prompt, "
        "completion, chosen, rejected, answer, reward, group, ...; repeatable).",
        rich_help_panel=DATA_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        help="Tokens kept of each example.",
        show_default="1024, or the context if smaller; grpo: the context",
        rich_help_panel=DATA_PANEL,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder for the results.",
        show_default="hlscore-out/<model>",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace existing results.", rich_help_panel=OUTPUT_PANEL),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON for scripts.", rich_help_panel=OUTPUT_PANEL
    ),
]
Top = Annotated[
    int,
    typer.Option(
        "--top", min=1, help="Modules to show in the table.", rich_help_panel=OUTPUT_PANEL
    ),
]


def parse_columns(pairs: list[str]) -> dict[str, str]:
    """Read `ROLE=COLUMN` pairs.

    Args:
        pairs: As given on the command line.

    Returns:
        Column by role.

    Raises:
        UsageError: A pair has no `=`, or an empty side.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        role, found, column = pair.partition("=")
        if not (role and found and column):
            raise UsageError(
                f"--column '{pair}' is not ROLE=COLUMN.", hint="For example prompt=question."
            )
        if role in columns:
            raise UsageError(
                f"--column maps '{role}' twice: to '{columns[role]}' and to '{column}'.",
                hint="Put both into one column of the data first, or choose one.",
            )
        columns[role] = column
    return columns


def parse_ranks(text: str | None) -> tuple[int, ...]:
    """Read `--ranks`.

    Args:
        text: Whole numbers with commas between them; `None` means one rank for all.

    Returns:
        The ranks, rising, each once.

    Raises:
        UsageError: Something else stands there.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(f"--ranks is '{text}'.", hint="Use whole numbers, such as 4,8,16,32,64.")
    return tuple(sorted({int(part) for part in parts}))


def parse_memory(pairs: list[str]) -> dict[str, str]:
    """Read `DEVICE=SIZE` pairs.

    Args:
        pairs: As given on the command line.

    Returns:
        Size by device; neither is checked here.

    Raises:
        UsageError: A pair has no `=`, or a device comes twice.
    """
    sizes: dict[str, str] = {}
    for pair in pairs:
        device, found, size = pair.partition("=")
        if not found:
            raise UsageError(
                f"--max-memory '{pair}' is not DEVICE=SIZE.", hint="For example 0=20GiB."
            )
        if device in sizes:
            raise UsageError(f"--max-memory names device '{device}' twice.")
        sizes[device] = size
    return sizes
