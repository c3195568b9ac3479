"""A plan without full modules as a configuration of verl."""

from __future__ import annotations

from hlscore.exporters.exporter import FILL_IN, Export, Exporter, yaml_text
from hlscore.exporters.limits import ExportError, Limits

_TO_DO = (
    f"Fill in {FILL_IN}: the data. Everything else comes from verl's own ppo_trainer; add what",
    "you would give on its command line.",
    "verl's own keys have no full modules and one rank. A plan with more can start from the",
    "untrained adapter of `hlscore export --to seed-adapter`: give its path as lora_adapter_path",
    "and its largest rank as lora_rank. But verl then sends the rollout engine names of full",
    "modules that it does not load, so it samples from their old weights.",
)


def _files(export: Export) -> dict[str, str]:
    adapter = export.adapter
    for name in (export.base, *adapter["target_modules"]):
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
                "path": export.base,
                "lora_rank": adapter["r"],
                "lora_alpha": adapter["lora_alpha"],
                "target_modules": adapter["target_modules"],
            },
            "actor": {"optim": {"lr": export.rates("grpo")[1]}},
            # With LoRA the engine has to load the base weights itself.
            "rollout": {"load_format": "safetensors"},
        },
        "data": {"train_files": FILL_IN, "val_files": FILL_IN},
    }
    return {"verl.yaml": yaml_text(EXPORTER.heading(export.plan, _TO_DO), fields)}


EXPORTER = Exporter(
    name="verl",
    summary="verl.yaml: LoRA modules of one rank, for hydra; full modules and more ranks with the "
    "seed adapter, within limits",
    limits=Limits(
        trainer="verl", full=False, ranks=False, parameters=False, only_full=False, bits=(16,),
        starts_from_adapter=True,
    ),
    files=_files,
    methods=("grpo",), rates=1, experimental=True,
    usage='python -m verl.trainer.main_ppo --config-dir "$(dirname {out})" '
    '--config-name "$(basename {out})"',
    remarks=lambda export: (  # noqa: ARG005
        "target_modules are PEFT's, of verl's FSDP workers; Megatron workers read other keys.",
    ),
)  # fmt: skip
