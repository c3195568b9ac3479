"""How near do predicted activations and totals come to the tensors of a real training step?

Run it with `python benchmarks/memory.py`. Each case runs the forward and backward pass of the
real code of transformers and PEFT at full size on fake tensors, which have sizes but no content,
and follows every storage from the operation that makes it until it is freed. Attention is that of
flash kernels; LayerNorm computes in float32, as under autocast on a GPU. What kernels use inside
themselves and what allocators round up is not seen, and no optimizer step is run. `lora` trains
adapters on every candidate, `hybrid` every tenth candidate in full (experts aside), `full` all
parameters in float32 without PEFT.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from machine import parsed, print_table, write_result
from models import CONFIGS
from rich.progress import track
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from hlscore.inputs.identity import dimensions, parameter_sizes
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.planning.memory import Choice, MemoryUse, full_training, memory_use
from hlscore.records import Candidate, ModelShape
from hlscore.settings import CandidateSettings, MemorySettings

RANK = 16
ARMS = ("lora", "hybrid", "full")
FUSED = "fused_like_on_a_gpu"
# Model, what is changed in its configuration, sequences, tokens of each. A small vocabulary puts
# the peak into a block, as a chunked loss does.
SMALL = {"vocab_size": 1000, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CASES: tuple[tuple[str, Mapping[str, Any], int, int], ...] = (
    ("llama-3.1-8b", {}, 1, 2048),
    ("llama-3.1-8b", {}, 4, 1024),
    ("llama-3.1-8b", {}, 1, 16384),
    ("llama-3.1-8b", SMALL, 1, 2048),
    ("qwen3-8b", {}, 1, 2048),
    ("qwen3-8b", {}, 8, 512),
    ("qwen3-8b", SMALL, 1, 8192),
    ("gpt2", {}, 1, 1024),
    ("gpt2", {}, 8, 512),
    ("gpt2", SMALL, 8, 1024),
    ("qwen3-30b-a3b", {}, 1, 512),
    ("qwen3-30b-a3b", {}, 1, 4096),
    ("qwen3-30b-a3b", SMALL, 1, 4096),
)


class Tensors(TorchDispatchMode):
    """Follows the bytes of every storage that an operation makes, until it is freed.

    Attributes:
        peak: Most bytes of everything at a time.
        loose_peak: Most bytes at a time of what is neither a weight nor a gradient of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.loose_peak = 0
        self._sizes: dict[int, int] = {}
        self._state: set[int] = set()
        self._now = self._loose = 0

    def hold(self, tensor: torch.Tensor, *, state: bool) -> None:
        """Count a tensor, as weight or gradient or as anything else."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
            self._loose += self._sizes[key]
            weakref.finalize(storage, self._free, key)
        if state and key not in self._state:
            self._state.add(key)
            self._loose -= self._sizes[key]

    def _free(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._now -= size
        if key in self._state:
            self._state.discard(key)
        else:
            self._loose -= size

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it makes."""
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.hold(leaf, state=False)
        self.peak = max(self.peak, self._now)
        self.loose_peak = max(self.loose_peak, self._loose)
        return made


def behave_like_a_gpu() -> None:
    """Attention without scores, LayerNorm in float32."""

    def attention(
        _module: nn.Module, query: Any, key: Any, value: Any, _mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        made = run(query, key, value, 0.0, True, scale=more.get("scaling"))[0]
        return made.transpose(1, 2).contiguous(), None

    AttentionInterface.register(FUSED, attention)
    AttentionMaskInterface.register(FUSED, lambda *_, **__: None)
    plain = nn.functional.layer_norm

    def layer_norm(
        tensor: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> torch.Tensor:
        wide = [None if item is None else item.float() for item in (weight, bias)]
        return plain(tensor.float(), shape, *wide, eps)

    nn.functional.layer_norm = layer_norm


def choices_of(rows: Sequence[Candidate], arm: str) -> list[Choice]:
    """LoRA on every candidate; in a hybrid every tenth in full, experts aside."""
    owners = [owner(row) for row in rows if row.form != "experts"]
    full = set(owners[::10]) if arm == "hybrid" else set[str]()
    return [
        Choice(row=row, mode="full") if owner(row) in full
        else Choice(row=row, mode="lora", rank=RANK)
        for row in rows
    ]  # fmt: skip


def owner(row: Candidate) -> str:
    """What PEFT trains in full as one."""
    return row.module.rpartition(".")[0] if row.form == "experts" else row.module


def wrapped(model: PreTrainedModel, choices: Sequence[Choice]) -> nn.Module:
    """The model under PEFT."""
    lora = [item.row for item in choices if item.mode == "lora"]
    linear = ("linear", "conv1d")
    config = peft.LoraConfig(
        r=RANK,
        target_modules=[row.module for row in lora if row.form in linear],
        target_parameters=[row.parameter for row in lora if row.form not in linear] or None,
        modules_to_save=sorted({owner(c.row) for c in choices if c.mode == "full"}) or None,
        fan_in_fan_out=any(row.form == "conv1d" for row in lora),
    )
    model.enable_input_require_grads()
    return peft.get_peft_model(model, config)


def fill(model: nn.Module) -> None:
    """Put fake tensors in the place of meta tensors, float32 ones where they are trained."""
    made: dict[int, nn.Parameter] = {}
    kept = []  # ids stay unique while the parameters live
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                dtype = torch.float32 if old.requires_grad else old.dtype
                made[id(old)] = nn.Parameter(
                    torch.empty(old.shape, dtype=dtype), requires_grad=old.requires_grad
                )
                kept.append(old)
            module._parameters[name] = made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def step(model: nn.Module, batch: int, length: int) -> Tensors:
    """Forward and backward pass over one batch, gradients empty before."""
    tensors = Tensors()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda found: tensors.hold(found.grad, state=True)
            )
    with torch.device("cpu"):
        tokens = torch.zeros(batch, length, dtype=torch.long)
    for tensor in (*model.parameters(), *model.buffers(), tokens):
        tensors.hold(tensor, state=True)
    with tensors:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
    return tensors


def measure(
    name: str, changes: Mapping[str, Any], batch: int, length: int, arm: str
) -> dict[str, Any]:
    """Measure one case and predict it.

    Returns:
        What was measured and predicted, in bytes, optimizer state aside.
    """
    config = AutoConfig.from_pretrained(CONFIGS / name, local_files_only=True)
    for key, value in changes.items():
        setattr(config, key, value)
    dtype = torch.float32 if arm == "full" else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=FUSED)
        model.config.use_cache = False
        use = predict(model, arm, batch, length)
        choices = choices_of(candidates_of(find_modules(model, CandidateSettings())), arm)
        trained = model if arm == "full" else wrapped(model, choices)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained.train()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill(trained)
        found = step(trained, batch, length)
    return {
        "model": name,
        "vocabulary": config.vocab_size,
        "batch": batch,
        "length": length,
        "arm": arm,
        "measured_activations": found.loose_peak,
        "predicted_activations": use.activation_bytes,
        "measured_total": found.peak,
        "predicted_total": use.total_bytes - use.optimizer_bytes,
    }


def predict(model: PreTrainedModel, arm: str, batch: int, length: int) -> MemoryUse:
    """What hlscore says."""
    shape = ModelShape(
        n_params=sum(parameter.numel() for parameter in model.parameters()),
        dimensions=dimensions(model, candidates_of(find_modules(model))),
        modules=find_modules(model, CandidateSettings()),
        parameters=parameter_sizes(model),
    )
    settings = MemorySettings(train_batch=batch, train_length=length)
    if arm == "full":
        return full_training(shape, shape.parameters, settings)
    return memory_use(shape, choices_of(shape.candidates, arm), settings)


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print predicted over measured."""
    rows = []
    for item in results:
        cells = []
        for what in ("activations", "total"):
            if what == "activations" and item["arm"] != "lora":
                # Copies that autocast makes of what is trained lie where gradients come later.
                cells += ["", ""]
                continue
            measured, predicted = item[f"measured_{what}"], item[f"predicted_{what}"]
            cells += [f"{measured / 1024**3:.3g} GiB", f"{predicted / measured:.2f}"]
        batch = f"{item['batch']} x {item['length']}"
        rows.append((item["model"], item["vocabulary"], batch, item["arm"], *cells))
    heads = ("model", "vocab", "batch", "arm", "activations", "ratio", "total", "ratio")
    print_table(heads, rows, box=None)


def main() -> None:
    """Measure every case, print the table and write the result."""
    options = parsed(__doc__, only={"help": "one model of the cases", "default": ""})
    behave_like_a_gpu()
    jobs = [(case, arm) for case in CASES for arm in ARMS if options.only in case[0]]
    # On fake tensors grouped products take bfloat16 only.
    jobs = [(case, arm) for case, arm in jobs if arm != "full" or "a3b" not in case[0]]
    results = [measure(*case, arm) for case, arm in track(jobs, "measuring")]
    show(results)
    if not options.only:
        print(write_result("memory", {"rank": RANK, "peft": peft.__version__, "cases": results}))


if __name__ == "__main__":
    main()
