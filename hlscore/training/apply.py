"""A plan put on a live model with PEFT, and proof that exactly the planned weights train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError, UsageError, first_line
from hlscore.exporters.limits import PEFT_LIMITS, check_limits
from hlscore.exporters.peft import lora_config, never_packed, skip_modules
from hlscore.inputs.model import input_device
from hlscore.inputs.packed import is_packed_linear
from hlscore.training.model_check import check_model
from hlscore.training.trainables import expected_trainables, groups

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["apply", "check_trainables", "skip_modules", "upcast"]

_SHOWN = 3
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
            adapter only when they are called.

    Returns:
        The wrapped model. If an error is raised, the model is as it was.

    Raises:
        ArtifactError: The file is no plan.
        ModelError: The model is not the plan's, is wrapped already, or a module cannot be
            trained in the way that the plan says.
        UsageError: PEFT is not installed, or cannot run the plan.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            "Plans are put on models with PEFT, which is not installed.",
            hint="Run pip install 'hlscore[peft]'.",
        ) from error
    if isinstance(model, peft.PeftModel) or hasattr(model, "peft_config"):
        raise ModelError(
            "The model is wrapped by PEFT already.", hint="Apply the plan to the base model."
        )
    check_model(model, plan, allow_other_weights=allow_other_weights)
    check_limits(plan, PEFT_LIMITS)
    _check_packed(model, plan)
    runnable = try_forward and _is_runnable(model)
    with _restored_on_error(model):
        wrapped = _wrap(model, plan, adapter_name)
        if plan.memory.master == "fp32":
            upcast(wrapped)
        check_trainables(wrapped, plan, adapter_name=adapter_name)
        if runnable:
            _check_forward(wrapped)
    return wrapped


def upcast(model: PeftModel) -> None:
    """Convert every trainable parameter of 16 bits to float32, in place.

    Args:
        model: A wrapped model.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.itemsize < 4:
            parameter.data = parameter.data.float()


def check_trainables(model: PeftModel, plan: Plan, *, adapter_name: str | None = None) -> None:
    """Make sure that the trainable parameters are exactly the plan's, and the ranks too.

    Args:
        model: A wrapped model.
        plan: The plan.
        adapter_name: Name of the adapter; `None` means the active one.

    Raises:
        ModelError: A parameter is missing or trains unplanned, or an adapter has another rank.
    """
    planned = {name for part in groups(model, plan, adapter_name=adapter_name).values()
               for name in part}  # fmt: skip
    actual = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if planned == actual:
        _check_sizes(model, plan, adapter_name)
        return
    parts = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:_SHOWN])}"
        for what, names in (
            ("are missing", planned - actual), ("train unplanned", actual - planned)
        )
        if names
    ]  # fmt: skip
    raise ModelError(
        f"PEFT does not train exactly what the plan says. {'; '.join(parts)}.",
        hint="This version of PEFT may match names in another way; lock these modules to frozen.",
    )


def _check_sizes(model: PeftModel, plan: Plan, adapter_name: str | None) -> None:
    """Adapters of another rank than planned have the right names but another size."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    by_module = expected_trainables(model, plan, adapter_name=adapter_name)
    for item in plan.lora_modules:
        parts = [sizes[name] for name in by_module[item.module]]
        # Parts of another process are empty where weights are sharded.
        if all(parts) and sum(parts) != item.trained_params:
            raise ModelError(
                f"The adapter on '{item.module}' has {sum(parts):,} parameters, not the "
                f"{item.trained_params:,} of rank {item.rank}.",
                hint="This version of PEFT may match rank patterns in another way; lock the "
                "module to the plan's rank.",
            )


def _wrap(model: PreTrainedModel, plan: Plan, adapter_name: str) -> PeftModel:
    import peft

    config = lora_config(plan)
    config.base_model_name_or_path = None  # PEFT warns if this is not the model's own name
    try:
        with warnings.catch_warnings():
            for message in _GROUNDLESS:
                warnings.filterwarnings("ignore", message=message)
            wrapped = peft.get_peft_model(
                model,
                config,
                adapter_name=adapter_name,
                autocast_adapter_dtype=plan.memory.master == "fp32",
            )
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise ModelError(f"PEFT cannot put the plan on this model: {first_line(error)}") from error
    # Readers of a saved adapter need a name, and a model that was never saved has none.
    config.base_model_name_or_path = getattr(model, "name_or_path", "") or plan.model.name
    assert isinstance(wrapped, peft.PeftModel)  # noqa: S101 - mixed models are not asked for
    return wrapped


def _is_runnable(model: PreTrainedModel) -> bool:
    """Whether a model takes a few plain tokens; a warning says so if it does not."""
    if model.device.type == "meta":
        return False
    failure, _ = _try_tokens(model)
    if failure is not None:
        warnings.warn(
            f"The forward pass under the plan is not checked: with {_TOKENS} plain tokens it fails "
            f"without the plan, too ({first_line(failure)}).",
            stacklevel=3,
        )
    return failure is None


def _check_forward(model: PeftModel) -> None:
    """Refuse adapters under which the forward pass fails."""
    failure, place = _try_tokens(model)
    if failure is not None:
        raise ModelError(
            f"Under the plan the forward pass fails at or after '{place}': {first_line(failure)}",
            hint=f"Plan again with --lock '{place}=frozen', or pass try_forward=False to apply.",
        ) from failure


def _try_tokens(model: PreTrainedModel | PeftModel) -> tuple[Exception | None, str]:
    """Run a few tokens forward, in the mode that the model is in.

    Args:
        model: A model, wrapped or not.

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


def _check_packed(model: PreTrainedModel, plan: Plan) -> None:
    for name, what in never_packed(plan):
        if is_packed_linear(model.get_submodule(name)):
            raise ModelError(
                f"'{name}' cannot be {what}: its weight is quantized.",
                hint="Load the model with BitsAndBytesConfig(..., llm_int8_skip_modules="
                "skip_modules(plan)), from hlscore.training.apply.",
            )


@contextmanager
def _restored_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Put a model back together when wrapping it fails half-way."""
    attributes = set(model.__dict__)
    children = [(module, dict(module._modules)) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.data)
             for parameter in model.parameters()]  # fmt: skip
    hooks = {
        id(module): set(module._forward_hooks) for module, _ in children if module._forward_hooks
    }
    try:
        yield
    except BaseException:
        for module, before in children:
            _put_back(module, before, hooks.get(id(module), set()))
        for parameter, flag, data in flags:
            parameter.data = data
            parameter.requires_grad_(flag)
        for name in set(model.__dict__) - attributes:
            delattr(model, name)
        raise


def _put_back(module: nn.Module, children: dict[str, nn.Module | None], hooks: set[int]) -> None:
    module._modules.clear()
    module._modules.update(children)
    for key in set(module._forward_hooks) - hooks:
        del module._forward_hooks[key]
