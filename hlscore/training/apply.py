"""A plan put on a live model with PEFT, with proof that exactly the planned weights train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.checks.fit import differences
from hlscore.errors import ModelError, UsageError, first_line
from hlscore.exporters.adapter_config import lora_config, never_packed, skip_modules
from hlscore.exporters.limits import PEFT_LIMITS, check_limits
from hlscore.inputs.identity import loaded_hash, structure_hash
from hlscore.inputs.model import input_device
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.weights import is_packed_linear
from hlscore.training.groups import check_trainables
from hlscore.wording import first_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

__all__ = ["apply", "check_model", "skip_modules", "upcast"]

_TOKENS = 8

# PEFT says these where all is as it should be: it looks for the patterns of parameters among the
# modules only, and mends the layout of each Conv1D itself.
_GROUNDLESS = (
    r"The following (rank|alpha)_pattern keys did not match",
    r"fan_in_fan_out is set to",
)


def apply(
    model: PreTrainedModel,
    plan: Plan | Path | str,
    *,
    allow_other_weights: bool = False,
    adapter_name: str = "default",
    try_forward: bool = True,
) -> PeftModel:
    """Wrap a model so that exactly what a plan says is trained.

    Where the plan keeps trained parameters in float32, those of a 16-bit model are converted:
    small updates are lost in 16 bits. Such a model runs under autocast (`bf16=True` in trainers).

    Args:
        model: The model that the plan was made for, in any dtype; it is changed in place.
        plan: The plan, or the path of a `plan.json`.
        allow_other_weights: Do not warn when the weights are not those that were scored.
        adapter_name: What PEFT calls the adapter.
        try_forward: Run a few tokens through the wrapped model: some layers fail under an
            adapter only when they are called. On any error the model is left as it was.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    if hasattr(model, "peft_config"):
        raise ModelError(
            "The model is wrapped by PEFT already.", hint="Apply the plan to the base model."
        )
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"Cannot apply a plan to a {type(model).__name__}.",
            hint="Give the transformers model that the plan was made for.",
        )
    config = checked_config(model, plan, allow_other_weights=allow_other_weights)
    import peft

    runnable = try_forward and model.device.type != "meta"
    if runnable and (failure := _try_tokens(model)[0]) is not None:
        runnable = False
        warnings.warn(
            f"The forward pass with the plan applied is not checked: with {_TOKENS} plain tokens "
            f"it fails without the plan, too ({first_line(failure)}).",
            stacklevel=2,
        )
    with _restored_on_error(model):
        try:
            with warnings.catch_warnings():
                # PEFT asks transformers for what it has renamed.
                warnings.simplefilter("ignore", FutureWarning)
                for message in _GROUNDLESS:
                    warnings.filterwarnings("ignore", message=message)
                wrapped: Any = peft.get_peft_model(
                    model,
                    config,
                    adapter_name=adapter_name,
                    autocast_adapter_dtype=plan.memory.master == "fp32",
                )
        except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise ModelError(
                f"PEFT cannot put the plan on this model: {first_line(error)}"
            ) from error
        # Readers of a saved adapter need a name, and a model that was never saved has none.
        config.base_model_name_or_path = getattr(model, "name_or_path", "") or plan.model.name
        if plan.memory.master == "fp32":
            upcast(wrapped)
        check_trainables(wrapped, plan, adapter_name=adapter_name)
        failure, place = _try_tokens(wrapped) if runnable else (None, "")
        if failure is not None:
            raise ModelError(
                f"With the plan applied the forward pass fails at or after '{place}': "
                f"{first_line(failure)}",
                hint=f"Plan again with --lock '{place}=frozen', or pass try_forward=False to "
                "apply.",
            ) from failure
    return cast("PeftModel", wrapped)


def checked_config(
    model: PreTrainedModel | str, plan: Plan, *, allow_other_weights: bool = False
) -> LoraConfig:
    """PEFT's configuration of a plan that PEFT can put on a model; a mere name is not compared."""
    if isinstance(model, PreTrainedModel):
        check_model(model, plan, allow_other_weights=allow_other_weights)
    check_limits(plan, PEFT_LIMITS)
    config = lora_config(plan)  # refuses where PEFT is missing
    for name, what in never_packed(plan):
        if isinstance(model, PreTrainedModel) and is_packed_linear(model.get_submodule(name)):
            raise ModelError(
                f"'{name}' cannot be {what}: its weight is quantized.",
                hint="Load the model with BitsAndBytesConfig(..., llm_int8_skip_modules="
                "skip_modules(plan)), from hlscore.training.apply.",
            )
    return config


def check_model(model: PreTrainedModel, plan: Plan, *, allow_other_weights: bool = False) -> None:
    """Refuse a model whose names or shapes are not the plan's; warn if its weights are not.

    Weights of a quantized model are rounded, so they are not compared.
    """
    found = find_modules(model)
    candidates = candidates_of(found)
    differing = [item.message for item in differences(found, plan)]
    if not differing and structure_hash(candidates) != plan.model.fingerprint.structure:
        differing = ["its candidate modules are not those of the plan"]
    if differing:
        raise ModelError(
            f"The plan was made for '{plan.model.name}' ({plan.model.architecture}), and this "
            f"{type(model).__name__} differs: {first_of(differing, 3, '; ')}.",
            hint="Load the model that the plan names, or rank the modules of this one.",
        )
    if allow_other_weights or any(item.quantized for item in candidates):
        return
    if loaded_hash(model, candidates) != plan.model.fingerprint.weights:
        warnings.warn(
            f"The weights of this model are not those of '{plan.model.name}' that were scored: "
            "the plan may not suit it. Pass allow_other_weights=True if they differ on purpose.",
            stacklevel=4,
        )


def upcast(model: PeftModel) -> None:
    """Convert every trainable parameter of 16 bits to float32, in place."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.itemsize < 4:
            parameter.data = parameter.data.float()


def _try_tokens(model: PreTrainedModel | PeftModel) -> tuple[Exception | None, str]:
    """Run a few tokens forward, in the mode that the model is in.

    Returns:
        What went wrong, if anything, and the last module with an adapter that was called.
    """
    base: Any = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    device, called = input_device(base), [""]
    vocabulary = getattr(base.config.get_text_config(), "vocab_size", None) or _TOKENS
    ids = torch.arange(_TOKENS, device=device)[None] % vocabulary
    short = base.dtype in (torch.float16, torch.bfloat16)
    with ExitStack() as undo:
        for name, module in base.named_modules():
            if hasattr(module, "lora_A"):
                hook = module.register_forward_pre_hook(
                    lambda *_, name=name: called.append(name.replace(".base_layer", ""))
                )
                undo.callback(hook.remove)
        # Dropout may be on; what the caller draws afterwards stays the same.
        undo.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        # Without gradients bitsandbytes rearranges 4-bit weights on some CPUs; with them some
        # models keep the graph beside their state (RecurrentGemma).
        packed = any(is_packed_linear(module) for module in base.modules())
        undo.enter_context(torch.set_grad_enabled(packed))
        undo.enter_context(torch.autocast(device.type, base.dtype, enabled=short))
        try:
            model(input_ids=ids, use_cache=False)
        except Exception as error:
            return error, called[-1]
    return None, ""


@contextmanager
def _restored_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Put a model back together when wrapping it fails half-way."""
    attributes = set(model.__dict__)
    before = [(module, dict(module._modules), set(module._forward_hooks))
              for module in model.modules()]  # fmt: skip
    flags = [(parameter, parameter.requires_grad, parameter.data)
             for parameter in model.parameters()]  # fmt: skip
    try:
        yield
    except BaseException:
        for module, children, hooks in before:
            module._modules.clear()
            module._modules.update(children)
            for key in set(module._forward_hooks) - hooks:
                del module._forward_hooks[key]
        for parameter, flag, data in flags:
            parameter.data = data
            parameter.requires_grad_(flag)
        for name in set(model.__dict__) - attributes:
            delattr(model, name)
        raise
