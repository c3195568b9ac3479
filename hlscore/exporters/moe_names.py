"""Model types for which PEFT rewrites target names, and how to name a weight all the same.

For mixture-of-experts models whose experts transformers 5 fuses, PEFT turns every LoRA target
that ends in the old name of an expert matrix into the experts of all layers, also the exact name
of a dense layer. A target that names the parameter is left alone.
"""

from __future__ import annotations

from hlscore.artifacts.plan import Plan, PlanModule

# Last parts of names that PEFT rewrites, by what it takes the model for.
REWRITTEN_LEAVES: dict[str, frozenset[str]] = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}

# What PEFT takes a model type for. A type too many costs nothing: its weights are then named by
# parameter, which any model allows. A type too few would train other weights than planned.
LIKE_MIXTRAL = frozenset({"minimax", "minimax_m2", "mixtral"})
LIKE_QWEN2_MOE = frozenset({
    "Dots3NoteTextModel", "UnlimitedOcrTextModel", "afmoe", "beam", "cohere2_moe", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe",
    "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum",
    "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker", "solar_open",
})  # fmt: skip


def rewritten_leaves(model_type: str) -> frozenset[str]:
    """Last parts of the names that PEFT rewrites for a model type.

    Args:
        model_type: `model_type` of the model's configuration.

    Returns:
        The last parts; empty for a model that PEFT leaves alone.
    """
    if model_type in LIKE_MIXTRAL:
        return REWRITTEN_LEAVES["mixtral"]
    return REWRITTEN_LEAVES["qwen2_moe"] if model_type in LIKE_QWEN2_MOE else frozenset()


def needs_parameter_name(plan: Plan, module: PlanModule) -> bool:
    """Tell whether LoRA reaches a weight by the name of its parameter only.

    Args:
        plan: The plan that the module is in.
        module: The module, whatever its mode.

    Returns:
        True for routers and experts, which are no linear layers, and for the linear layers whose
        names PEFT would rewrite.
    """
    if module.form in ("parameter", "experts"):
        return True
    leaf = module.module.rpartition(".")[2]
    return module.form != "embedding" and leaf in rewritten_leaves(plan.model.model_type)
