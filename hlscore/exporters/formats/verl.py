"""A plan without full modules as a configuration of verl."""

from __future__ import annotations

from hlscore.artifacts.plan import Plan
from hlscore.exporters.adapter_config import default_alpha, target_modules
from hlscore.exporters.exporter import FILL_IN, Exporter, ExportSettings, experimental, yaml_text
from hlscore.exporters.limits import SEED_ADAPTER, ExportError, Limits
from hlscore.planning.revision import default_rank

_LIMITS = Limits(
    trainer="verl",
    full=False,
    ranks=False,
    parameters=False,
    only_full=False,
    bits=(16,),
    instead=SEED_ADAPTER,
)

_TO_DO = (
    experimental(_LIMITS.trainer),
    "",
    f"Fill in {FILL_IN}: the data. Everything else comes from verl's own ppo_trainer; add what",
    "you would give on its command line.",
    "verl's own keys have no full modules and one rank. A plan with more can start from the",
    "untrained adapter of `hlscore export --to seed-adapter`: give its path as lora_adapter_path",
    "and its largest rank as lora_rank. But verl then sends the rollout engine names of full",
    "modules that it does not load, so it samples from their old weights.",
)


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    base, targets = settings.base(plan), target_modules(plan)
    for name in (base, *targets):
        if "$" in name or name == "???":  # a reference, and a missing value
            raise ExportError(
                f"hydra, with which verl reads its configuration, does not read '{name}' as text.",
                hint="Use a name without '$'.",
            )
    fields = {
        # On top of verl's ppo_trainer.
        "defaults": ["ppo_trainer", "_self_"],
        "actor_rollout_ref": {
            "model": {
                "path": base,
                "lora_rank": default_rank(plan),
                "lora_alpha": default_alpha(plan),
                "target_modules": targets,
            },
            "actor": {"optim": {"lr": settings.rates(plan, "grpo")[1]}},
            # With LoRA the engine has to load the base weights itself.
            "rollout": {"load_format": "safetensors"},
        },
        "data": {"train_files": FILL_IN, "val_files": FILL_IN},
    }
    return {"verl.yaml": yaml_text(plan, _TO_DO, fields)}


EXPORTER = Exporter(
    name="verl",
    summary="verl.yaml: LoRA modules of one rank, for hydra; full modules and more ranks with the "
    "seed adapter, within limits",
    limits=_LIMITS,
    files=_files,
    methods=("grpo",),
    usage='python -m verl.trainer.main_ppo --config-dir "$(dirname {out})" '
    '--config-name "$(basename {out})"',
    notes=lambda plan, settings: (  # noqa: ARG005
        "target_modules are PEFT's, of verl's FSDP workers; Megatron workers read other keys.",
    ),
    experimental=True,
)
