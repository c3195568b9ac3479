"""What an exporter is, and what one is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.exporters.limits import Limits
from hlscore.exporters.quoting import printable
from hlscore.inputs.hub import BUILTIN_PREFIX, find_model
from hlscore.paths import existing_path
from hlscore.planning.rates import rate_source, suggested_rates
from hlscore.settings import ModelSettings

Writer = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What an export depends on besides the plan.

    Attributes:
        model: Hub id or directory of the base model; `None` means the one that the plan names.
        full_lr: Learning rate of the modules trained in full; `None` means the plan's suggestion.
        lora_lr: Learning rate of the adapters; `None` means the plan's suggestion.
        allow_other_weights: Accept a base model whose weights are not those of the plan.
    """

    model: str | None = None
    full_lr: float | None = None
    lora_lr: float | None = None
    allow_other_weights: bool = False

    def __post_init__(self) -> None:
        """Check the rates.

        Raises:
            UsageError: A learning rate is not above 0, or no number.
        """
        for option, rate in (("--full-lr", self.full_lr), ("--lora-lr", self.lora_lr)):
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise UsageError(f"{option} is {rate:g}.", hint="Use a number above 0.")

    def base(self, plan: Plan) -> str:
        """The base model: a hub id, or the whole path of a folder, of the built-in one too."""
        name = self.model or plan.model.name
        if not name.startswith(BUILTIN_PREFIX):
            local = existing_path(name)
            # A trainer may be started in another folder.
            return str(local.resolve()) if local is not None and local.is_dir() else name
        return str(
            find_model(ModelSettings(model=name, ignore_adapter=True), weights=False).directory
        )

    def rates(self, plan: Plan, method: str | None = None) -> tuple[float, float]:
        """Learning rates of full modules and adapters.

        Args:
            plan: The plan.
            method: `sft`, `dpo` or `grpo`; `None` means the loss that the plan was made for.

        Returns:
            The rates: those given, else the plan's, else what is usual for another loss than its.
        """
        full, lora = plan.learning_rates.full.value, plan.learning_rates.lora.value
        if method not in (None, _loss(plan)):
            full, lora = suggested_rates(method)
        return self.full_lr or full, self.lora_lr or lora

    def rate_source(self, plan: Plan, method: str) -> str:
        """Where suggested rates come from."""
        return plan.learning_rates.full.source if method == _loss(plan) else rate_source(method)


def _loss(plan: Plan) -> str:
    """The loss that a plan was made for; weights alone are ranked for SFT."""
    objective = plan.provenance.probes.objective
    return "sft" if objective == "none" else objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format that a plan can be written in.

    Attributes:
        name: Name on the command line.
        summary: One line for `--list`: which files come out, and who reads them.
        limits: What the trainer cannot express; checked before `files` is called.
        files: Names and writers of the files of a plan that is within the limits. Equal plans
            and settings give equal bytes.
        folder: Whether `--out` is a folder; else it is the one file.
        usage: The command or code that uses the result; `{out}` stands for its path.
        notes: Remarks for the reader about a given plan: what has to be set besides.
        rates: Whether the files or the notes give the learning rates.
        methods: Losses that the files are for; empty where the trainer is told later.
    """

    name: str
    summary: str
    limits: Limits
    files: Callable[[Plan, ExportSettings], dict[str, Writer]]
    folder: bool = False
    usage: str = ""
    notes: Callable[[Plan, ExportSettings], tuple[str, ...]] = lambda plan, settings: ()  # noqa: ARG005
    rates: bool = True
    methods: tuple[str, ...] = ()

    def all_notes(self, plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
        """The notes, that another loss was probed, and that rates were asked for in vain."""
        notes = self.notes(plan, settings)
        if self.methods and _loss(plan) not in self.methods:
            notes = (
                f"The plan was made for {_loss(plan)}, this file trains {self.methods[0]}: what "
                "LoRA lags behind in can differ between them.",
                *notes,
            )
        if self.rates or settings.full_lr is settings.lora_lr is None:
            return notes
        return (
            *notes,
            f"{self.name} carries no learning rates: give --full-lr and --lora-lr to your trainer.",
        )


def text_file(text: str) -> Writer:
    """A writer of one text file in UTF-8 with Unix line ends."""

    def write(path: Path) -> None:
        path.write_bytes(text.encode())

    return write


def origin(plan: Plan) -> tuple[str, ...]:
    """Lines that say where a file comes from, for a comment at its top.

    Args:
        plan: The plan.

    Returns:
        The lines, without comment signs, and without line ends and unprintable characters inside.
    """
    totals = plan.totals
    lines = (
        f"Written by hlscore {plan.provenance.hlscore_version} from a plan for {plan.model.name}.",
        f"plan: {totals.full_modules} full, {totals.lora_modules} lora, "
        f"{totals.frozen_modules} frozen; budget {plan.budget.asked}; score {plan.score.name}",
        f"structure {plan.model.fingerprint.structure}",
        f"weights {plan.model.fingerprint.weights}",
    )
    return tuple(printable(line) for line in lines)
