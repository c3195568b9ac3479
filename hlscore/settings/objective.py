"""Which loss is probed, and where its completions come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from hlscore.settings.option import changed, check, flag_of, option, require, settings_in

Objective = Literal["sft", "dpo", "grpo"]
PolicyLossType = Literal["dapo", "grpo", "dr_grpo", "gspo"]
PairLossType = Literal[
    "sigmoid", "hinge", "ipo", "sigmoid_norm", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down",
]  # fmt: skip
RewardScale = Literal["group", "batch", "none"]

DEFAULT_PROMPTS = 128
DEFAULT_BETA = 0.1

_LOSS_TYPES: dict[str, tuple[str, ...]] = {
    "sft": (),
    "dpo": get_args(PairLossType),
    "grpo": get_args(PolicyLossType),
}
# Options of completions that are sampled now.
OF_SAMPLING = (
    "rewards", "reward_weights", "reward_timeout", "generations", "top_p", "top_k", "stop",
    "generate_batch",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """Which loss is probed, and where its completions come from."""

    panel: ClassVar = "Objective"
    objective: Objective = option(
        "sft", "The loss of the training to come: cross-entropy, preference pairs, or rewards."
    )
    loss_type: str | None = option(
        None,
        f"grpo: {', '.join(_LOSS_TYPES['grpo'])}. dpo: {', '.join(_LOSS_TYPES['dpo'])}. TRL's "
        "names (gspo: its grpo with importance_sampling_level sequence).",
        default="dapo or sigmoid, as in TRL",
    )
    beta: float | None = option(
        None,
        "dpo: strength of the KL penalty towards the reference.",
        default="0.1",
        low=1e-6,
        high=1e6,
        hint="Use 1e-6 to 1e6, such as 0.1.",
    )
    rollouts: str | None = option(
        None,
        "grpo: completions with rewards of any engine: a file or hub id with prompt, "
        "completion, reward, and group, completion_ids, logprobs where known.",
    )
    rewards: tuple[str, ...] = option(
        (),
        "grpo: sample completions now and judge them: math, numeric, exact, json, regex (the "
        "answer is the pattern), regex:PATTERN, or package.module:function as TRL calls it "
        "(repeatable; summed).",
        name="reward",
    )
    reward_weights: tuple[float, ...] = option(
        (), "Weight of each --reward, in their order (repeatable).", name="reward-weight"
    )
    reward_timeout: float = option(
        60.0, "Seconds that a reward may take for one batch.", above=0, hint="Use seconds above 0."
    )
    generations: int = option(
        8,
        "Completions sampled per prompt.",
        low=2,
        high=4096,
        hint="Use 2 to 4096: an advantage compares the completions of one prompt.",
    )
    temperature: float | None = option(
        None,
        "Sampling temperature, also in the loss.",
        default="1, or that of the rollouts",
        low=0.001,
        high=1000,
    )
    top_p: float = option(
        1.0,
        "Sample from the most probable tokens that make up this share.",
        above=0,
        high=1,
        hint="Use a share in (0, 1].",
    )
    top_k: int = option(
        0,
        "Sample from this many of the most probable tokens; 0 means all.",
        low=0,
        hint="Use 0 (all) or more.",
    )
    max_new_tokens: int = option(
        512, "Most tokens of a completion; the constant length of dr_grpo.", low=1
    )
    stop: tuple[str, ...] = option((), "Text that ends a completion (repeatable).")
    generate_batch: int = option(
        64, "Completions sampled at a time; the batch size changes the samples.", low=1
    )
    scale_rewards: RewardScale = option(
        "group",
        "Advantage normalisation: standard deviation of the rewards of the group, of the "
        "batch, or none.",
    )
    epsilon: float = option(
        0.2, "Ratios further below 1 are clipped, where rollouts bring log-probabilities.", low=0
    )
    epsilon_high: float | None = option(
        None, "Ratios further above 1 are clipped.", default="--epsilon", low=0
    )
    mask_truncated: bool = option(False, "Ignore completions that were cut at the length limit.")
    assistant_only_loss: bool = option(
        False, "sft: of conversations, count only the assistant's tokens (TRL's option)."
    )

    def __post_init__(self) -> None:
        """Check every field, and that it belongs to the objective."""
        check(self)
        given = changed(self)
        require(
            self.objective != "sft" or "loss_type" not in given,
            f"--loss-type is '{self.loss_type}', but --objective sft has one loss.",
            "Use --objective grpo or dpo, or remove it.",
        )
        require(
            self.objective != "grpo" or "beta" not in given,
            "--beta does nothing at the point that is probed: there the model is its own "
            "reference, and the KL term has no gradient.",
            "Remove it.",
        )
        owners = dict.fromkeys(settings_in(ObjectiveSettings), "grpo")
        owners |= {"objective": self.objective, "loss_type": self.objective, "beta": "dpo"}
        owners |= {"assistant_only_loss": "sft"}
        for name in given:
            flag = flag_of(ObjectiveSettings, name)
            require(
                owners[name] == self.objective,
                f"{flag} is for --objective {owners[name]}, not {self.objective}.",
                "Remove it, or add the objective.",
            )
            require(
                self.rollouts is None or name not in OF_SAMPLING,
                f"{flag} is for completions that are sampled now; --rollouts has its own.",
                "Remove one of them.",
            )
        kinds = _LOSS_TYPES[self.objective]
        require(
            self.loss_type is None or self.loss_type in kinds,
            f"--loss-type is '{self.loss_type}'.",
            f"Use one of: {', '.join(kinds)}.",
        )
        require(all(self.stop), "A --stop text is empty.", "Remove it, or give a text.")
        require(self.rollouts is None or bool(self.rollouts.strip()), "--rollouts is empty.")

    @property
    def loss_type_name(self) -> str:
        """The loss type with the default filled in; empty for sft."""
        defaults = {"sft": "", "dpo": "sigmoid", "grpo": "dapo"}
        return self.loss_type or defaults[self.objective]

    @property
    def beta_value(self) -> float:
        """Beta with the default filled in."""
        return DEFAULT_BETA if self.beta is None else self.beta

    @property
    def clip(self) -> tuple[float, float]:
        """How far ratios may be below and above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def temperature_value(self) -> float:
        """Temperature with the default filled in."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def samples_rollouts(self) -> bool:
        """Whether the model has to sample completions itself."""
        return self.objective == "grpo" and self.rollouts is None
