"""What an exporter is, what it is given, and the list of all exporters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from textwrap import wrap

from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.exporters.limits import Limits
from hlscore.inputs.hub import BUILTIN_PREFIX, find_model
from hlscore.paths import existing_path
from hlscore.planning.rates import suggested_rates
from hlscore.settings import ModelSettings

Writer = Callable[[Path], None]

# What stands where the reader has to fill something in.
FILL_IN = "FILL_IN"

_FORMATS = "hlscore.exporters.formats"
_COMMENT_WIDTH = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What an export depends on besides the plan; `None` means what the plan says."""

    model: str | None = None
    full_lr: float | None = None
    lora_lr: float | None = None
    allow_other_weights: bool = False

    def __post_init__(self) -> None:
        """Check the rates."""
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

    def revision(self, plan: Plan) -> str | None:
        """Revision of the base model; `None` where the plan has none or another base is used."""
        return plan.model.revision if self.base(plan) == plan.model.name else None

    def rates(self, plan: Plan, method: str | None = None) -> tuple[float, float]:
        """Learning rates of full modules and adapters.

        Those given, else the plan's, else what is usual for `method` where the plan was made for
        another loss.
        """
        rates = plan.learning_rates
        if method not in (None, _loss(plan)):
            rates = suggested_rates(method)
        return self.full_lr or rates.full.value, self.lora_lr or rates.lora.value

    def one_rate(self, plan: Plan, method: str | None = None) -> float:
        """The learning rate where a trainer has only one.

        The smaller one of those that the plan needs: a rate too high ruins modules, one too low
        only trains them slowly.
        """
        full, lora = self.rates(plan, method)
        if plan.full and plan.lora_modules:
            return min(full, lora)
        return full if plan.full else lora

    def rate_source(self, plan: Plan, method: str) -> str:
        """Where suggested rates come from."""
        of_plan = method == _loss(plan)
        return (plan.learning_rates if of_plan else suggested_rates(method)).full.source


def _loss(plan: Plan) -> str:
    """The loss that a plan was made for; weights alone are ranked for SFT."""
    objective = plan.provenance.probes.objective
    return "sft" if objective == "none" else objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """A format that a plan can be written in.

    Attributes:
        name: Name on the command line; the file has the same, with `_` for `-`.
        summary: One line for `--list`: which files come out, and who reads them.
        limits: What the trainer cannot express; checked before `files` is called.
        files: Texts or writers of the files of a plan that is within the limits, by name. Equal
            plans and settings give equal bytes.
        folder: Whether `--out` is a folder, not the one file.
        usage: The command or code that uses the result; `{out}` stands for its path.
        notes: Remarks for the reader about a given plan: what has to be set besides.
        rates: Whether the files or the notes give the learning rates.
        methods: Losses that the files are for; empty where the trainer is told later.
        experimental: Whether no test of hlscore has run the files with the trainer.
    """

    name: str
    summary: str
    limits: Limits
    files: Callable[[Plan, ExportSettings], Mapping[str, str | Writer]]
    folder: bool = False
    usage: str = ""
    notes: Callable[[Plan, ExportSettings], tuple[str, ...]] = lambda plan, settings: ()  # noqa: ARG005
    rates: bool = True
    methods: tuple[str, ...] = ()
    experimental: bool = False

    def writers(self, plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
        """Writers of the files, by name."""
        files = self.files(plan, settings).items()
        return {name: text_file(item) if isinstance(item, str) else item for name, item in files}

    def all_notes(self, plan: Plan, settings: ExportSettings) -> tuple[str, ...]:
        """The notes, with those on an untested format, another loss, and rates not written."""
        notes = list(self.notes(plan, settings))
        if self.methods and _loss(plan) not in self.methods:
            notes.insert(
                0,
                f"The plan was made for {_loss(plan)}, this file trains {self.methods[0]}: the "
                "best modules may differ between the two.",
            )
        if self.experimental:
            notes.insert(0, experimental(self.limits.trainer))
        if not self.rates and not (settings.full_lr is settings.lora_lr is None):
            notes.append(f"The format {self.name} has no learning rates: set them in your trainer.")
        return tuple(notes)


def exporter_names() -> tuple[str, ...]:
    """Names of all formats, in alphabetical order."""
    package = import_module(_FORMATS)
    return tuple(item.name.replace("_", "-") for item in iter_modules(package.__path__))


def find_exporter(name: str) -> Exporter:
    """The exporter of a format."""
    names = exporter_names()
    if name not in names:
        near = get_close_matches(name.replace("_", "-").lower(), names, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"There is no exporter '{name}'.", hint=f"{meant}There are: {', '.join(names)}."
        )
    exporter: Exporter = import_module(f"{_FORMATS}.{name.replace('-', '_')}").EXPORTER
    return exporter


def experimental(trainer: str) -> str:
    """The sentence that marks a format which was never run with its trainer."""
    return f"Experimental: hlscore's tests have not run this format with {trainer}."


def origin(plan: Plan) -> tuple[str, ...]:
    """Lines that say where a file comes from: printable, without comment signs and line ends."""
    totals = plan.totals
    lines = (
        f"Written by hlscore {plan.provenance.hlscore_version} from a plan for {plan.model.name}.",
        f"plan: {totals.full_modules} full, {totals.lora_modules} lora, "
        f"{totals.frozen_modules} frozen; budget {plan.budget.asked}; score {plan.score.name}",
        f"structure {plan.model.fingerprint.structure}",
        f"weights {plan.model.fingerprint.weights}",
    )
    return tuple(
        "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
        )
        for line in lines
    )


def comment(lines: Iterable[str]) -> str:
    """Lines as a comment of YAML, TOML or Python, folded; unprintable characters become `?`."""
    safe = ("".join(char if char.isprintable() else "?" for char in line) for line in lines)
    parts = (
        part for line in safe for part in wrap(line, _COMMENT_WIDTH, break_long_words=False) or [""]
    )
    return "".join(f"# {part}\n" if part else "#\n" for part in parts)


def yaml_text(plan: Plan, lines: Iterable[str], fields: Mapping[str, object]) -> str:
    """A YAML file with its origin and lines as a comment on top, without empty fields."""
    import yaml  # type: ignore[import-untyped]  # `hlscore check` runs without it

    # Without allow_unicode: PyYAML would write some line ends as they are and lose them.
    body: str = yaml.safe_dump(_filled(fields), sort_keys=False, width=math.inf)
    return f"{comment((*origin(plan), *lines))}\n{body}"


def _filled(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that are not empty, lists copied: PyYAML refers to a list that comes again."""
    filled: dict[str, object] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            filled[key] = _filled(value)
        elif isinstance(value, list | tuple):
            filled[key] = list(value)
        else:
            filled[key] = value
    return {key: value for key, value in filled.items() if value not in (None, [], {})}


def text_file(text: str) -> Writer:
    """A writer of one text file in UTF-8 with Unix line ends."""

    def write(path: Path) -> None:
        path.write_bytes(text.encode())

    return write
