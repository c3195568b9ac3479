"""Full modules alone, for trainers that can freeze by name but know no adapters."""

from __future__ import annotations

import re

from hlscore.artifacts.plan import Plan
from hlscore.exporters.exporter import Exporter, comment, origin
from hlscore.exporters.limits import ExportError, Limits

# Letters, digits and signs that mean themselves, or match themselves, in a regular expression.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def _text(plan: Plan) -> str:
    """One regular expression per parameter that is trained, everything else being frozen.

    Dots are not escaped: axolotl's `unfrozen_parameters`, which reads such lines, escapes them
    itself, and for `re.match` a dot matches a dot too.
    """
    lines = []
    for item in sorted(plan.full, key=lambda item: item.module):
        if not _NAME.fullmatch(item.parameter):
            raise ExportError(
                f"'{item.parameter}' cannot be written as a regular expression of its own.",
                hint="hlscore export --to peft keeps any name.",
            )
        lines.append(f"^{item.parameter}$")
        weights = item.matrices * item.out_features * item.in_features
        if item.params > weights and item.parameter.endswith(".weight"):
            lines.append(f"^{item.parameter.removesuffix('weight')}bias$")
    return comment(origin(plan)) + "".join(f"{line}\n" for line in lines)


EXPORTER = Exporter(
    name="freeze",
    summary="regular expressions of the parameters to train, for trainers that only freeze",
    limits=Limits(trainer="a freeze-only trainer", lora=False, only_lora=False, peft=False),
    files=lambda plan, settings: {"unfrozen.txt": _text(plan)},  # noqa: ARG005
    usage="unfrozen_parameters of axolotl, without the comments: one entry per line of {out}",
    rates=False,
)
