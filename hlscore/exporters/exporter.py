"""What an exporter is, what it is given, and the list of all exporters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from textwrap import wrap
from typing import Any, Literal

from hlscore.artifacts.plan import Plan, PlanRates
from hlscore.errors import UsageError, did_you_mean
from hlscore.exporters.adapter_config import adapter_config
from hlscore.exporters.limits import Limits
from hlscore.inputs.hub import BUILTIN_PREFIX, find_model
from hlscore.paths import existing_path
from hlscore.planning.parts import suggested_rates
from hlscore.settings import ModelSettings
from hlscore.wording import memory, visible

# What stands where the reader has to fill something in.
FILL_IN = "FILL_IN"

_FORMATS = "hlscore.exporters.formats"
_COMMENT_WIDTH = 96
_MOMENTUM = "momentum=0.9"
# Values of `optim` of transformers' Trainer.
_OPTIMIZERS = {
    "adamw": "adamw_torch", "adamw8bit": "adamw_bnb_8bit", "adafactor": "adafactor",
    "lion": "lion_32bit", "lion8bit": "lion_8bit", "sgd": "sgd", "sgd-momentum": "sgd",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Export:
    """A plan on its way to a trainer, and what its files depend on besides."""

    plan: Plan  # a plan within the limits of the trainer
    model: str | None = None  # another base model: hub id or directory
    full_lr: float | None = None  # learning rate of full modules; else the plan's suggestion
    lora_lr: float | None = None  # learning rate of adapters; else the plan's suggestion
    allow_other_weights: bool = False  # do not warn of weights that are not those of the plan

    @cached_property
    def base(self) -> str:
        """The base model: a hub id, or the whole path of a folder, of the built-in one too."""
        name = self.model or self.plan.model.name
        if name.startswith(BUILTIN_PREFIX):
            settings = ModelSettings(model=name, ignore_adapter=True)
            return str(find_model(settings, weights=False).directory)
        local = existing_path(name)
        # A trainer may be started in another folder.
        return str(local.resolve()) if local is not None and local.is_dir() else name

    @cached_property
    def adapter(self) -> dict[str, Any]:
        """PEFT's configuration of the adapter, which names base model and revision."""
        return adapter_config(self.plan, self.base)

    @property
    def adapter_text(self) -> str:
        """The same as the file that PEFT reads."""
        return json.dumps(self.adapter, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def loss(self) -> str:
        """The loss that the plan was made for; weights alone are ranked for SFT."""
        objective = self.plan.provenance.probes.objective
        return "sft" if objective == "none" else objective

    def suggested(self, method: str) -> PlanRates:
        """The plan's learning rates, or the usual ones where it was made for another loss."""
        return self.plan.learning_rates if method == self.loss else suggested_rates(method)

    def rates(self, method: str | None = None) -> tuple[float, float]:
        """Learning rates of full modules and adapters: those given, else those suggested."""
        rates = self.suggested(method or self.loss)
        return self.full_lr or rates.full.value, self.lora_lr or rates.lora.value

    def one_rate(self, method: str | None = None) -> float:
        """The learning rate where a trainer has only one.

        The smaller one of those that the plan needs: a rate too high ruins modules, one too low
        only trains them slowly.
        """
        full, lora = self.rates(method)
        if self.plan.full and self.plan.lora_modules:
            return min(full, lora)
        return full if self.plan.full else lora

    @property
    def optimizer(self) -> dict[str, str | None]:
        """The plan's optimizer as `optim` and `optim_args` of transformers' Trainer."""
        name = self.plan.memory.optimizer
        momentum = _MOMENTUM if name == "sgd-momentum" else None
        return {"optim": _OPTIMIZERS[name], "optim_args": momentum}

    @property
    def training_fields(self) -> dict[str, object]:
        """Arguments of transformers' Trainer, for trainers that have one learning rate."""
        return {
            "learning_rate": self.one_rate(),
            **self.optimizer,
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": self.plan.memory.train_batch,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1,
        }

    @property
    def counts_whole_conversations(self) -> bool:
        """Whether the probed loss is on every token of conversations, which is TRL's default."""
        probes = self.plan.provenance.probes
        return probes.format == "messages" and probes.loss_on == "all"

    @property
    def counts_assistant_only(self) -> bool:
        """Whether the probed loss is on the assistant's tokens of conversations alone."""
        return self.plan.provenance.probes.loss_on == "assistant"

    @property
    def float32_base(self) -> str:
        """How much memory a base model in float32 takes more than the plan counts, in words."""
        use = self.plan.memory
        more = use.frozen_bytes + use.copy_bytes if use.base_bits == 16 else 0
        return f" ({memory(more)} more than the plan counts)" if more else ""


Writer = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format that a plan can be written in."""

    name: str  # name on the command line; the file has the same, with `_` for `-`
    summary: str  # one line for `--list`: which files come out, and who reads them
    limits: Limits  # what the trainer can express; checked before `files` is called
    # Texts or writers of the files by name. Equal plans and settings give equal bytes.
    files: Callable[[Export], Mapping[str, str | Writer]]
    folder: bool = False  # whether `--out` is a folder, not the one file
    usage: str = ""  # the command or code that uses the result; `{out}` stands for its path
    # What the reader has to set or know besides, where it does not follow from the fields below.
    remarks: Callable[[Export], Iterable[str]] = lambda export: ()  # noqa: ARG005
    methods: tuple[str, ...] = ()  # losses that the files are for; empty: the trainer is told later
    upcasts: bool = True  # whether it trains full modules of a 16-bit model in float32
    rates: Literal[0, 1, 2] = 2  # how many learning rates it reads from the file
    optimizer: bool = False  # whether it reads transformers' `optim` and `optim_args` from the file
    experimental: bool = False  # whether no test of hlscore has run the files with the trainer

    @property
    def untested(self) -> tuple[str, ...]:
        """The sentence that marks an experimental format, if it is one."""
        sentence = f"hlscore's tests have not run this format with {self.limits.trainer}."
        return (f"Experimental: {sentence}",) if self.experimental else ()

    def notes(self, export: Export) -> tuple[str, ...]:
        """What the reader has to set or know besides."""
        plan, found = export.plan, [*self.untested]
        if self.methods and export.loss not in self.methods:
            found.append(
                f"The plan was made for {export.loss}, this file trains {self.methods[0]}: the "
                "best modules may differ between the two."
            )
        if self.rates == 1 and plan.full and plan.lora_modules:
            full, lora = export.rates()
            found.append(
                f"One learning rate holds for everything: {min(full, lora):g}, the smaller one of "
                f"{full:g} for full modules and {lora:g} for LoRA. Axolotl, Unsloth and TRL can "
                "give each its own."
            )
        if plan.full and plan.memory.master == "fp32" and not self.upcasts:
            found.append(
                "Modules trained in full keep the precision that the base model is loaded in: in "
                f"bfloat16 small learning rates are lost. Load it in float32{export.float32_base} "
                "or upcast what is trained, as hlscore.apply does."
            )
        if self.optimizer and export.optimizer["optim_args"]:
            found.append(
                f"SGD's momentum is set by optim_args ({_MOMENTUM}), which transformers up to 5.0 "
                "ignores."
            )
        found += self.remarks(export)
        if self.rates == 0 and not (export.full_lr is export.lora_lr is None):
            found.append(f"The format {self.name} has no learning rates: set them in your trainer.")
        return tuple(found)

    def origin(self, plan: Plan) -> tuple[str, ...]:
        """Lines that say where a file comes from, and whether its trainer has run such a file."""
        totals = plan.totals
        lines = (
            f"Written by hlscore {plan.provenance.hlscore_version} from a plan for "
            f"{plan.model.name}.",
            f"plan: {totals.full_modules} full, {totals.lora_modules} lora, "
            f"{totals.frozen_modules} frozen; budget {plan.budget.asked}; score {plan.score.name}",
            f"structure {plan.model.fingerprint.structure}",
            f"weights {plan.model.fingerprint.weights}",
            *self.untested,
        )
        return tuple(map(visible, lines))

    def heading(self, plan: Plan, lines: Sequence[str] = ()) -> str:
        """The origin of a file, and lines below it, as a folded comment of YAML, TOML or Python."""
        below = ["", *map(visible, lines)] if lines else []
        folded = (
            part
            for line in (*self.origin(plan), *below)
            for part in wrap(line, _COMMENT_WIDTH, break_long_words=False) or [""]
        )
        return "".join(f"# {part}\n" if part else "#\n" for part in folded)


def exporter_names() -> tuple[str, ...]:
    """Names of all formats, in alphabetical order."""
    package = import_module(_FORMATS)
    return tuple(item.name.replace("_", "-") for item in iter_modules(package.__path__))


def find_exporter(name: str) -> Exporter:
    """The exporter of a format."""
    names = exporter_names()
    if name not in names:
        meant = did_you_mean(name.replace("_", "-").lower(), names)
        raise UsageError(
            f"There is no exporter '{name}'.", hint=f"{meant}There are: {', '.join(names)}."
        )
    exporter: Exporter = import_module(f"{_FORMATS}.{name.replace('-', '_')}").EXPORTER
    return exporter


def yaml_text(comment: str, fields: Mapping[str, object]) -> str:
    """A YAML file with a comment on top, without empty fields."""
    import yaml  # type: ignore[import-untyped]  # `hlscore check` runs without it

    # Without allow_unicode: PyYAML would write some line ends as they are and lose them.
    body: str = yaml.safe_dump(_filled(fields), sort_keys=False, width=math.inf)
    return f"{comment}\n{body}"


def _filled(value: object) -> object:
    """A value without empty fields; lists are copied: PyYAML refers to one that comes again."""
    if isinstance(value, Mapping):
        inner = {key: _filled(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item not in (None, [], {})}
    return list(value) if isinstance(value, list | tuple) else value
