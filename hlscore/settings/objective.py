"""Which loss is probed, and where its completions come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from hlscore.settings.checking import require, require_choice

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
_LIVE_ONLY = (
    "rewards", "reward_weights", "reward_timeout", "generations", "top_p", "top_k", "stop",
    "generate_batch",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """Which loss is probed.

    Attributes:
        objective: `sft` (cross-entropy), `dpo` (pairs) or `grpo` (rewards).
        loss_type: Variant of the loss by TRL's name; `None` is TRL's default: `sigmoid` for dpo,
            `dapo` for grpo.
        beta: Strength of the tie to the reference, for dpo; `None` means 0.1.
        rollouts: Completions with rewards from a file or the hub, for grpo.
        rewards: Names of reward functions for completions that the model samples itself.
        reward_weights: One per reward; empty means 1 each.
        reward_timeout: Seconds that a reward function may take for one batch.
        generations: Completions per prompt.
        temperature: What logits are divided by, in sampling and in the loss; `None` means what a
            file of rollouts says, else 1.
        top_p: Sample from the most probable tokens that make up this share.
        top_k: Sample from so many of the most probable tokens; 0 means all.
        max_new_tokens: Most tokens of a sampled completion, and the constant length of `dr_grpo`.
        stop: Texts that end a completion.
        generate_batch: Completions sampled at a time; changes which ones are drawn.
        scale_rewards: What advantages are divided by: the standard deviation of the rewards of
            the `group`, of the whole `batch`, or nothing (`none`).
        epsilon: How far below 1 a ratio may be before it is clipped.
        epsilon_high: How far above 1; `None` means `epsilon`.
        mask_truncated: Whether completions cut short at the limit count nothing.
        assistant_only_loss: Whether only the assistant's tokens of a conversation carry loss, for
            sft; TRL's option of this name.
    """

    objective: Objective = "sft"
    loss_type: str | None = None
    beta: float | None = None
    rollouts: str | None = None
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    reward_timeout: float = 60.0
    generations: int = 8
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    generate_batch: int = 64
    scale_rewards: RewardScale = "group"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    mask_truncated: bool = False
    assistant_only_loss: bool = False

    def __post_init__(self) -> None:
        """Check every field, and that it belongs to the objective.

        Raises:
            UsageError: A field has a value that cannot be used, or does nothing here.
        """
        require_choice("--objective", self.objective, get_args(Objective))
        self._check_belonging()
        if self.loss_type is not None:
            require_choice("--loss-type", self.loss_type, _LOSS_TYPES[self.objective])
        beta = self.beta_value
        require(1e-6 <= beta <= 1e6, f"--beta is {beta:g}.", "Use 1e-6 to 1e6, such as 0.1.")
        require_choice("--scale-rewards", self.scale_rewards, get_args(RewardScale))
        self._check_sampling()
        if self.rollouts is not None:
            self._check_rollouts()

    def _check_belonging(self) -> None:
        given = [item.name for item in fields(self) if getattr(self, item.name) != item.default]
        require(
            self.objective != "sft" or "loss_type" not in given,
            f"--loss-type is '{self.loss_type}', but --objective sft has one loss.",
            "Use --objective grpo or dpo, or leave it out.",
        )
        require(
            self.objective != "grpo" or "beta" not in given,
            "--beta does nothing at the point that is probed: there the model is its own "
            "reference, and the KL term has no gradient.",
            "Leave it out.",
        )
        owners = dict.fromkeys((item.name for item in fields(self)), "grpo")
        owners |= {"objective": self.objective, "loss_type": self.objective, "beta": "dpo"}
        owners |= {"assistant_only_loss": "sft"}
        for name in given:
            require(
                owners[name] == self.objective,
                f"--{option_name(name)} is for --objective {owners[name]}, not {self.objective}.",
                "Leave it out, or add the objective.",
            )

    def _check_sampling(self) -> None:
        heat, limit = self.temperature_value, self.reward_timeout
        require(0.001 <= heat <= 1000, f"--temperature is {heat:g}.", "Use 0.001 to 1000.")
        require(0 < limit < math.inf, f"--reward-timeout is {limit:g}.", "Use seconds above 0.")
        require(0 < self.top_p <= 1, f"--top-p is {self.top_p:g}.", "Use a share in (0, 1].")
        require(self.top_k >= 0, f"--top-k is {self.top_k}.", "Use 0 (all) or more.")
        require(
            2 <= self.generations <= 4096,
            f"--generations is {self.generations}.",
            "Use 2 to 4096: an advantage compares the completions of one prompt.",
        )
        require(self.max_new_tokens >= 1, f"--max-new-tokens is {self.max_new_tokens}.", "Use 1+.")
        require(self.generate_batch >= 1, f"--generate-batch is {self.generate_batch}.", "Use 1+.")
        require(all(self.stop), "A --stop text is empty.")
        for name, clip in (("epsilon", self.epsilon), ("epsilon-high", self.epsilon_high)):
            require(clip is None or 0 <= clip < math.inf, f"--{name} is {clip}.", "Use 0 or more.")

    def _check_rollouts(self) -> None:
        require(bool(self.rollouts and self.rollouts.strip()), "--rollouts is empty.")
        for name in _LIVE_ONLY:
            default = next(item.default for item in fields(self) if item.name == name)
            require(
                getattr(self, name) == default,
                f"--{option_name(name)} is for completions that are sampled now, but --rollouts "
                "brings its own.",
                "Leave one of them out.",
            )

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


def option_name(name: str) -> str:
    """Name of the option that a field of the settings comes from, without dashes before it."""
    others = {
        "rewards": "reward",
        "reward_weights": "reward-weight",
        "columns": "column",
        "config": "data-config",
    }
    return others.get(name, name.replace("_", "-"))
