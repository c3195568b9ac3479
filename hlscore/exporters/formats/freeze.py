"""Full modules alone, for trainers that can freeze by name but know no adapters."""

from __future__ import annotations

import re

from hlscore.exporters.exporter import Export, Exporter
from hlscore.exporters.limits import ExportError, Limits


def _files(export: Export) -> dict[str, str]:
    """One regular expression per parameter that is trained, everything else being frozen.

    Dots are not escaped: axolotl's `unfrozen_parameters`, which reads such lines, escapes them
    itself, and for `re.match` a dot matches a dot too.
    """
    lines = []
    for item in sorted(export.plan.full, key=lambda item: item.module):
        # Signs that mean or match themselves in a regular expression.
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", item.parameter):
            raise ExportError(
                f"'{item.parameter}' cannot be written as a regular expression of its own.",
                hint="hlscore export --to peft keeps any name.",
            )
        lines.append(f"^{item.parameter}$\n")
        weights = item.n_weights
        if item.params > weights and item.parameter.endswith(".weight"):
            lines.append(f"^{item.parameter.removesuffix('weight')}bias$\n")
    return {"unfrozen.txt": EXPORTER.heading(export.plan) + "".join(lines)}


EXPORTER = Exporter(
    name="freeze",
    summary="regular expressions of the parameters to train, for trainers that only freeze",
    limits=Limits(trainer="a freeze-only trainer", lora=False, only_lora=False, peft=False),
    files=_files,
    rates=0,
    usage="unfrozen_parameters of axolotl, without the comments: one entry per line of {out}",
)
