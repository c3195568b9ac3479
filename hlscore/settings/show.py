"""Which modules of a plan or report `hlscore show` looks at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from hlscore.errors import UsageError
from hlscore.settings.option import arguments, check, option

FILTER_PANEL = "Which modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a module has to be to be shown; what is empty or `None` asks for nothing."""

    panel: ClassVar = FILTER_PANEL
    match: tuple[str, ...] = option(
        (), "Only modules whose full name matches this glob (repeatable)."
    )
    kind: str | None = option(None, "Only this kind, such as down_proj or self_attn.q_proj.")
    layer: str | None = option(None, "Only this layer, or these: 3 or 0-5.")
    mode: Literal["full", "lora", "frozen"] | None = option(
        None, "Only modules that a plan trains in this mode."
    )
    status: Literal["scored", "unreached", "skipped"] | None = option(
        None, "Only rows of a report with this status."
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)
        first, last = self.layers or (0, 0)
        if first > last:
            raise UsageError(
                f"--layer {self.layer} ends before it begins.", hint=f"Use --layer {last}-{first}."
            )

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last decoder block."""
        if self.layer is None:
            return None
        first, dash, last = self.layer.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() and len(end) < 10 for end in ends):
            raise UsageError(
                f"--layer is '{self.layer}'.", hint="Use one layer, 3, or several, 0-5."
            )
        return int(ends[0]), int(ends[1])

    def __str__(self) -> str:
        """The filters as options of the command line."""
        return " ".join(arguments(Filters, asdict(self)))
