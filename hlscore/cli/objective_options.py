"""Options of the probed loss, and of where its completions come from."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

OBJECTIVE_PANEL = "Objective"

ObjectiveOption = Annotated[
    Literal["sft", "dpo", "grpo"],
    typer.Option(
        "--objective",
        help="The loss of the training to come: cross-entropy, preference pairs, or rewards.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
LossType = Annotated[
    str | None,
    typer.Option(
        "--loss-type",
        help="grpo: dapo, grpo, dr_grpo or gspo. dpo: sigmoid, hinge, ipo, sigmoid_norm, "
        "nca_pair, bco_pair, sppo_hard, apo_zero or apo_down. TRL's names (gspo: its grpo with "
        "importance_sampling_level sequence).",
        rich_help_panel=OBJECTIVE_PANEL,
        show_default="dapo or sigmoid, as in TRL",
    ),
]
Beta = Annotated[
    float | None,
    typer.Option(
        "--beta",
        help="dpo: strength of the tie to the reference.",
        rich_help_panel=OBJECTIVE_PANEL,
        show_default="0.1",
    ),
]
Rollouts = Annotated[
    str | None,
    typer.Option(
        "--rollouts",
        help="grpo: completions with rewards of any engine: a file or hub id with prompt, "
        "completion, reward, and group, completion_ids, logprobs where known.",
        rich_help_panel=OBJECTIVE_PANEL,
        show_default=False,
    ),
]
Rewards = Annotated[
    list[str],
    typer.Option(
        "--reward",
        help="grpo: sample completions now and judge them: math, numeric, exact, regex:PATTERN, "
        "json, or package.module:function as TRL calls it (repeatable; summed).",
        rich_help_panel=OBJECTIVE_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
RewardWeights = Annotated[
    list[float],
    typer.Option(
        "--reward-weight",
        help="Weight of each --reward, in their order (repeatable).",
        rich_help_panel=OBJECTIVE_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
RewardTimeout = Annotated[
    float,
    typer.Option(
        "--reward-timeout",
        help="Seconds that a reward may take for one batch.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
Generations = Annotated[
    int,
    typer.Option(
        "--generations",
        help="Completions sampled per prompt.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="What logits are divided by, in sampling and in the loss.",
        rich_help_panel=OBJECTIVE_PANEL,
        show_default="1, or what rollouts.jsonl says",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        help="Sample from the most probable tokens that make up this share.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        help="Sample from so many of the most probable tokens; 0 means all.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        help="Most tokens of a completion; the constant length of dr_grpo.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
Stop = Annotated[
    list[str],
    typer.Option(
        "--stop",
        help="Text that ends a completion (repeatable).",
        rich_help_panel=OBJECTIVE_PANEL,
        default_factory=list,
        show_default=False,
    ),
]
GenerateBatch = Annotated[
    int,
    typer.Option(
        "--generate-batch",
        help="Completions sampled at a time; other sizes draw other ones.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
ScaleRewards = Annotated[
    Literal["group", "batch", "none"],
    typer.Option(
        "--scale-rewards",
        help="What advantages are divided by: the spread of rewards in their group, in all, or "
        "nothing.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
Epsilon = Annotated[
    float,
    typer.Option(
        "--epsilon",
        help="Ratios further below 1 are clipped, where rollouts bring log-probabilities.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
EpsilonHigh = Annotated[
    float | None,
    typer.Option(
        "--epsilon-high",
        help="Ratios further above 1 are clipped.",
        rich_help_panel=OBJECTIVE_PANEL,
        show_default="--epsilon",
    ),
]
AssistantOnly = Annotated[
    bool,
    typer.Option(
        "--assistant-only-loss",
        help="sft: of conversations, count only the assistant's tokens (TRL's option).",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
MaskTruncated = Annotated[
    bool,
    typer.Option(
        "--mask-truncated",
        help="Completions cut short at the limit of their length count nothing.",
        rich_help_panel=OBJECTIVE_PANEL,
    ),
]
