"""A whole plan as a Python script for Unsloth."""

from __future__ import annotations

from pprint import pformat
from string import Template

from hlscore.artifacts.plan import Plan
from hlscore.exporters import hf_training as hf
from hlscore.exporters.adapter_config import adapter_config
from hlscore.exporters.exporter import (
    FILL_IN,
    Exporter,
    ExportSettings,
    comment,
    experimental,
    origin,
)
from hlscore.exporters.limits import Limits

_LIMITS = Limits(trainer="Unsloth", only_full=False)

_TO_DO = (
    experimental(_LIMITS.trainer),
    "",
    f"Fill in {FILL_IN}: the data set, with a column `text` or `messages`.",
)

_SCRIPT = Template('''
from unsloth import FastModel, UnslothTrainer, UnslothTrainingArguments  # isort: skip
from datasets import load_dataset

MODEL = $model
REVISION = $revision
DATASET = $dataset

# The plan. Names are full ones, so that no other module is hit.
LORA_MODULES = $lora
LORA_PARAMETERS = $parameters
FULL_MODULES = $full
RANKS = $ranks
ALPHAS = $alphas


def build():
    """Load the base model and prepare it for what the plan trains."""
    model, tokenizer = FastModel.from_pretrained(
        MODEL,
        revision=REVISION,
        max_seq_length=$length,
        load_in_4bit=$four,
        load_in_8bit=$eight,
    )
    model = FastModel.get_peft_model(
        model,
        r=$rank,
        lora_alpha=$alpha,
        lora_dropout=0.0,
        target_modules=LORA_MODULES,
        # Never None: Unsloth would look for experts to train besides.
        target_parameters=LORA_PARAMETERS,
        modules_to_save=FULL_MODULES or None,
        rank_pattern=RANKS,
        alpha_pattern=ALPHAS,
        ensure_weight_tying=$tying,
    )
    check(model)
    return model, tokenizer


def check(model):
    """Stop unless exactly what the plan says is trained."""
    names = {
        name.removeprefix("base_model.model.").split(".lora_")[0].split(".modules_to_save.")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    holders = {name.rpartition(".")[0] for name in LORA_PARAMETERS}
    names = {name.replace(".base_layer", "") for name in names}
    planned = {*LORA_MODULES, *holders, *FULL_MODULES}
    if names != planned:
        raise SystemExit(f"Not trained as planned: {sorted(names ^ planned)[:5]}")


def main():
    """Train."""
    model, tokenizer = build()
    trainer = UnslothTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset(DATASET, split="train"),
        args=UnslothTrainingArguments(
            output_dir="outputs",
            learning_rate=$lora_rate,
            # For every weight in modules_to_save, embedding or not.
            embedding_learning_rate=$full_rate,
            optim=$optimizer,
            optim_args=$optimizer_args,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=$batch,
            max_length=$length,
            num_train_epochs=1,
        ),
    )
    trainer.train()
    model.save_pretrained("outputs")


if __name__ == "__main__":
    main()
''')


def _files(plan: Plan, settings: ExportSettings) -> dict[str, str]:
    hf.refuse_packed(plan, _LIMITS.trainer)
    config = adapter_config(plan)
    full_rate, lora_rate = settings.rates(plan)
    values: dict[str, object] = {
        "model": settings.base(plan),
        "revision": settings.revision(plan),
        "dataset": FILL_IN,
        "lora": config["target_modules"],
        "parameters": config["target_parameters"] or [],
        "full": config["modules_to_save"] or [],
        "ranks": config["rank_pattern"],
        "alphas": config["alpha_pattern"],
        "length": plan.memory.train_length,
        "four": plan.memory.base_bits == 4,
        "eight": plan.memory.base_bits == 8,
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "tying": config["ensure_weight_tying"],
        "lora_rate": lora_rate,
        "full_rate": full_rate if plan.full else None,
        "optimizer": hf.optimizer_name(plan),
        "optimizer_args": hf.optimizer_args(plan),
        "batch": plan.memory.train_batch,
    }
    literals = {name: pformat(value, width=100) for name, value in values.items()}
    script = comment((*origin(plan), *_TO_DO)) + _SCRIPT.substitute(literals)
    return {"unsloth_train.py": script}


EXPORTER = Exporter(
    name="unsloth",
    summary="unsloth_train.py: the whole plan with ranks and both learning rates, a script for "
    "Unsloth's FastModel",
    limits=_LIMITS,
    files=_files,
    methods=("sft",),
    usage="python {out}",
    notes=lambda plan, settings: (  # noqa: ARG005
        "FastModel only: on a GPU FastLanguageModel trains no other full modules than lm_head and "
        "embed_tokens.",
        *(
            (
                "The probes counted the assistant's tokens alone: call "
                "unsloth.chat_templates.train_on_responses_only on the trainer.",
            )
            if hf.counts_assistant_only(plan)
            else ()
        ),
        *hf.precision_note(plan),
        *hf.optimizer_note(plan),
    ),
    experimental=True,
)
