"""A plan without full modules as a configuration of verl."""

from __future__ import annotations

from collections.abc import Iterable

from hlscore.artifacts.plan import Plan
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, origin, text_file
from hlscore.exporters.hf_training import FILL_IN, SEED_ADAPTER
from hlscore.exporters.limits import ExportError, Limits
from hlscore.exporters.peft import default_alpha, target_modules
from hlscore.exporters.revision import default_rank
from hlscore.exporters.yaml_text import yaml_text

_TRAINER = "verl"

_MISSING = "???"

_TO_DO = (
    "",
    f"Fill in {FILL_IN}: the data. Everything else comes from verl's own ppo_trainer; add what",
    "you would give on its command line.",
    "verl's own keys know no full modules and one rank. A plan with more can start from the",
    "untrained adapter of `hlscore export --to seed-adapter`: give its path as lora_adapter_path",
    "and its largest rank as lora_rank. But verl then sends the rollout engine names of full",
    "modules that it does not load, so it samples from their old weights.",
)


def verl_fields(plan: Plan, settings: ExportSettings) -> dict[str, object]:
    """The keys of a hydra configuration on top of verl's `ppo_trainer`.

    Args:
        plan: A plan within the limits of verl.
        settings: Base model and learning rates.

    Returns:
        The keys in the order they are written in.
    """
    _, rate = settings.rates(plan, "grpo")
    return {
        "defaults": ["ppo_trainer", "_self_"],
        "actor_rollout_ref": {
            "model": {
                "path": settings.base(plan),
                "lora_rank": default_rank(plan),
                "lora_alpha": default_alpha(plan),
                "target_modules": target_modules(plan),
            },
            "actor": {"optim": {"lr": rate}},
            # With LoRA the engine has to load the base weights itself.
            "rollout": {"load_format": "safetensors"},
        },
        "data": {"train_files": FILL_IN, "val_files": FILL_IN},
    }


def _refuse_interpolation(names: Iterable[str]) -> None:
    """Refuse what hydra would not read as text: references, and its sign for a missing value."""
    for name in names:
        if "$" in name or name == _MISSING:
            raise ExportError(
                f"hydra, which verl reads its configuration with, gives '{name}' a meaning of its "
                "own.",
                hint="Use a name without '$'.",
            )


def _files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    if plan.memory.base_bits != 16:
        raise ExportError(
            "verl trains LoRA on weights of 16 bits only.", hint="Plan again with --base 16."
        )
    _refuse_interpolation((settings.base(plan), *target_modules(plan)))
    text = yaml_text((*origin(plan), *_TO_DO), verl_fields(plan, settings))
    return {"verl.yaml": text_file(text)}


EXPORTER = Exporter(
    name="verl",
    summary="verl.yaml: LoRA modules of one rank, for hydra; full modules and ranks go by the "
    "seed adapter, with care",
    limits=Limits(
        trainer=_TRAINER,
        full=False,
        ranks=False,
        parameters=False,
        only_full=False,
        instead=SEED_ADAPTER,
    ),
    files=_files,
    methods=("grpo",),
    usage='python -m verl.trainer.main_ppo --config-dir "$(dirname {out})" '
    '--config-name "$(basename {out})"',
    notes=lambda plan, settings: (  # noqa: ARG005
        "target_modules are PEFT's, of verl's FSDP workers; Megatron workers read other keys.",
    ),
)
