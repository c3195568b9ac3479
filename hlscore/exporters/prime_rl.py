"""A plan as a configuration of prime-rl's supervised fine-tuning."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import (
    FILL_IN,
    counts_whole_conversations,
    one_rate,
    one_rate_note,
)
from hlscore.exporters.limits import ExportError, Limits
from hlscore.exporters.peft import default_alpha, modules_to_save, target_modules
from hlscore.exporters.peft_names import pattern
from hlscore.exporters.quoting import comment, quoted, scalar
from hlscore.exporters.revision import default_rank

_TRAINER = "prime-rl"

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data set. Names are regular expressions to prime-rl, searched for",
    "anywhere in a name, so each is bound to its start and end.",
    "For supervised fine-tuning only: in RL the weights of full modules are not sent to the",
    "inference engine.",
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    _refuse_packed(plan)
    parts = (
        comment((*origin(plan), *_TO_DO)),
        _table("model", {"name": settings.base(plan)}),
        _table(
            "model.lora",
            {"rank": default_rank(plan), "alpha": float(default_alpha(plan)), "dropout": 0.0},
        )
        + _patterns("target_modules", target_modules(plan))
        + _patterns("modules_to_save", modules_to_save(plan)),
        _table(
            "data",
            {
                "name": FILL_IN,
                "seq_len": plan.memory.train_length,
                "batch_size": plan.memory.train_batch,
            },
        ),
        *(
            [_table("data.loss_mask", dict.fromkeys(("system", "user", "assistant", "tool"), True))]
            if counts_whole_conversations(plan)
            else []
        ),
        _table("optim", {"lr": one_rate(plan, settings)}),
    )
    return {"prime_rl.toml": text_file("\n".join(parts))}


def _table(name: str, values: dict[str, str | float]) -> str:
    lines = (f"{key} = {scalar(value)}\n" for key, value in values.items())
    return f"[{name}]\n{''.join(lines)}"


def _patterns(key: str, names: list[str]) -> str:
    """Names as patterns; an empty list is written too, as the default is not empty."""
    if not names:
        return f"{key} = []\n"
    lines = (f"  {quoted(f'{pattern(name)}$')},\n" for name in names)
    return f"{key} = [\n{''.join(lines)}]\n"


def _refuse_packed(plan: Plan) -> None:
    if plan.memory.base_bits != 16:
        raise ExportError(
            "prime-rl trains on weights of 16 bits only.", hint="Plan again with --base 16."
        )


EXPORTER = Exporter(
    name="prime-rl",
    summary="prime_rl.toml: full and LoRA modules of one rank, for prime-rl's `sft`",
    limits=Limits(
        trainer=_TRAINER, ranks=False, parameters=False, only_full=False, forms=("linear",)
    ),
    files=_files,
    methods=("sft",),
    usage="uv run sft @ {out}",
    notes=lambda plan, settings: (
        *one_rate_note(plan, settings),
        *(
            ("Not for RL: prime-rl does not send full modules to the inference engine.",)
            if plan.full
            else ()
        ),
    ),
)
