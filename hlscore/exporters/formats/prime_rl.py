"""A plan as a configuration of prime-rl's supervised fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import default_alpha, modules_to_save, pattern, target_modules
from hlscore.exporters.exporter import (
    FILL_IN,
    Exporter,
    ExportSettings,
    comment,
    experimental,
    origin,
)
from hlscore.exporters.limits import Limits
from hlscore.planning.revision import default_rank

_LIMITS = Limits(
    trainer="prime-rl",
    ranks=False,
    parameters=False,
    only_full=False,
    forms=("linear",),
    bits=(16,),
)

_TO_DO = (
    experimental(_LIMITS.trainer),
    "",
    f"Fill in {FILL_IN}: the data set. prime-rl takes names as regular expressions and searches",
    "for them anywhere in a name, so each is bound to its start and end.",
    "For supervised fine-tuning only: in RL the weights of full modules are not sent to the",
    "inference engine.",
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    tables: dict[str, dict[str, object]] = {
        "model": {"name": settings.base(plan)},
        "model.lora": {
            "rank": default_rank(plan),
            "alpha": float(default_alpha(plan)),
            "dropout": 0.0,
            # An empty list is written too, as the default is not empty.
            "target_modules": [f"{pattern(name)}$" for name in target_modules(plan)],
            "modules_to_save": [f"{pattern(name)}$" for name in modules_to_save(plan)],
        },
        "data": {
            "name": FILL_IN,
            "seq_len": plan.memory.train_length,
            "batch_size": plan.memory.train_batch,
        },
    }
    if hf.counts_whole_conversations(plan):
        tables["data.loss_mask"] = dict.fromkeys(("system", "user", "assistant", "tool"), True)
    tables["optim"] = {"lr": settings.one_rate(plan)}
    parts = [comment((*origin(plan), *_TO_DO))]
    parts += [_table(name, values) for name, values in tables.items()]
    return {"prime_rl.toml": "\n".join(parts)}


def _table(name: str, values: Mapping[str, object]) -> str:
    """A table of TOML, whose strings, numbers, truth values and lists are those of JSON."""
    lines = [f"[{name}]\n"]
    for key, value in values.items():
        literal = json.dumps(value, ensure_ascii=False, indent=2).replace("\x7f", "\\u007f")
        lines.append(f"{key} = {literal}\n")
    return "".join(lines)


EXPORTER = Exporter(
    name="prime-rl",
    summary="prime_rl.toml: full and LoRA modules of one rank, for prime-rl's `sft`",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="uv run sft @ {out}",
    notes=lambda plan, settings: (
        *hf.one_rate_note(plan, settings),
        *(
            ("Not for RL: prime-rl does not send full modules to the inference engine.",)
            if plan.full
            else ()
        ),
    ),
    experimental=True,
)
