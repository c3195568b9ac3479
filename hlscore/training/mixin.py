"""Trainers of transformers and TRL that train a plan, each group at a rate of its own."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import UsageError
from hlscore.training.apply import apply, checked_config, upcast
from hlscore.training.groups import FULL, FULL_NO_DECAY, LORA, check_trainables, param_groups

if TYPE_CHECKING:
    import torch
    from torch import nn

# What a log calls the rates, by the groups that have them.
_RATES = {
    FULL: "learning_rate_full", FULL_NO_DECAY: "learning_rate_full", LORA: "learning_rate_lora",
}  # fmt: skip


class HybridTrainerMixin:
    """Makes a trainer train a plan: `class MyTrainer(HybridTrainerMixin, SFTTrainer)`.

    A trainer that takes `peft_config`, such as those of TRL, gets the plan as one and wraps the
    model itself; for `transformers.Trainer` the plan is applied to the model first. A model that
    the plan was already applied to is taken as it is. What is trained is held in float32, unless
    the plan was made for another precision, and the optimizer that `TrainingArguments` names gets
    groups for full modules and for adapters.

    `learning_rate` of the training arguments is not used: a rate of `None` is the plan's
    suggestion. `weight_decay=None` is that of the training arguments, `full_weight_decay=None` the
    same. A warning tells when the weights of `model` are not those of the plan, unless
    `allow_other_weights` is true; a model that is given by name is not compared.
    """

    # What the trainer beside this class provides.
    model: Any
    accelerator: Any
    optimizer: Any
    optimizer_cls_and_kwargs: Any
    args: Any

    def __init__(
        self,
        *args: Any,
        plan: Plan | str | Path,
        full_lr: float | None = None,
        lora_lr: float | None = None,
        weight_decay: float | None = None,
        full_weight_decay: float | None = None,
        allow_other_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        self.plan = plan if isinstance(plan, Plan) else read_plan(plan)
        self._weight_decay = weight_decay
        self._groups = partial(
            param_groups,
            plan=self.plan,
            full_lr=full_lr,
            lora_lr=lora_lr,
            full_weight_decay=full_weight_decay,
        )
        self._rates: dict[str, float] = {}
        args, kwargs = self._with_plan(args, kwargs, allow_other_weights)
        super().__init__(*args, **kwargs)
        if self.plan.memory.master == "fp32":
            upcast(self.model)
        check_trainables(self.model, self.plan)

        autocast = self.args.bf16 or self.args.fp16
        parameters = list(self.model.parameters())
        short = any(item.itemsize == 2 for item in parameters)
        in_float32 = any(item.requires_grad and item.itemsize == 4 for item in parameters)
        if short and in_float32 and not autocast:
            raise UsageError(
                "The model is held in 16 bits and what is trained in float32, which need autocast.",
                hint="Set bf16=True in the training arguments.",
            )
        if getattr(self.args, "use_transformers_continuous_batching", False) and autocast:
            raise UsageError(
                "Continuous batching rounds the trained weights to 16 bits at every generation.",
                hint="Set use_transformers_continuous_batching=False.",
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the training arguments name, with the groups of the plan."""
        trainer: Any = super()
        given = self.optimizer_cls_and_kwargs
        if self.optimizer is None:
            trained = self.model if model is None else model
            kind, settings = given or trainer.get_optimizer_cls_and_kwargs(self.args, trained)
            if not inspect.isclass(kind) or settings.keys() & {"params", "model", "optimizer_dict"}:
                raise UsageError(
                    f"The optimizer '{self.args.optim}' makes groups of its own.",
                    hint="Use one that takes groups, such as adamw_torch.",
                )
            decay = self.args.weight_decay if self._weight_decay is None else self._weight_decay
            groups = self._groups(trained, weight_decay=decay)
            # The trainer takes `params` from here in place of groups of its own.
            self.optimizer_cls_and_kwargs = kind, {**settings, "params": groups}
        try:
            optimizer: torch.optim.Optimizer = trainer.create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the rates of both groups wherever a rate is logged."""
        if "learning_rate" in logs:
            logs.update(self._rates)
        trainer: Any = super()
        trainer.log(logs, *args, **kwargs)

    def _get_learning_rate(self) -> float:
        # The trainer asks here for the rate that it logs, before the scheduler moves on.
        for group in self.optimizer.param_groups:
            if group.get("name") in _RATES:
                self._rates[_RATES[group["name"]]] = float(group["lr"])
        trainer: Any = super()
        rate: float = trainer._get_learning_rate()
        return rate

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # TRL runs the forward passes of training under autocast, but not those of generation.
        trainer: Any = super()
        with self.accelerator.autocast():
            return trainer._generate_single_turn(*args, **kwargs)

    def _with_plan(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], allow_other_weights: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the plan into the arguments of the trainer."""
        from peft import PeftModel
        from transformers import TrainingArguments, set_seed

        if kwargs.get("peft_config") is not None or kwargs.get("model_init") is not None:
            raise UsageError(
                "With a plan, give `model` and neither `peft_config` nor `model_init`."
            )
        for arguments in (*args, kwargs.get("args")):
            if isinstance(arguments, TrainingArguments):
                set_seed(arguments.seed)  # trainers do so only after the adapters are drawn
        model = args[0] if args else kwargs.get("model")
        if isinstance(model, PeftModel):
            return args, kwargs
        behind = type(self).__mro__[type(self).__mro__.index(HybridTrainerMixin) + 1 :]
        constructors = [kind.__dict__["__init__"] for kind in behind if "__init__" in kind.__dict__]
        if any("peft_config" in inspect.signature(one).parameters for one in constructors):
            config = checked_config(model, self.plan, allow_other_weights=allow_other_weights)
            return args, {**kwargs, "peft_config": config}
        model = apply(model, self.plan, allow_other_weights=allow_other_weights)
        return ((model, *args[1:]), kwargs) if args else (args, {**kwargs, "model": model})
