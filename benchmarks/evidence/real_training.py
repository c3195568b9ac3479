"""Several trainings of one arm of a real Llama at once, as one CUDA graph where there is a GPU.

The trainings differ in seed and learning rates; they are the first dimension of all that is
trained. Weights are kept in float32. On a GPU linear layers compute in bfloat16, as under autocast,
and the residual stream, the norms and the loss in float32; on a CPU everything is float32, and a
training that runs alone computes nothing for padding. Tests hold this against plain loops over the
model that PEFT wraps.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from stacked import Trial
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from hlscore.probes.units import ProbeExample
from hlscore.views.progress import terminal_progress

BETAS, EPSILON = (0.9, 0.999), 1e-8
WARMUP, LARGEST_NORM = 0.05, 1.0
ADAPTER = "default"
# Full modules and adapters have learning rates of their own.
FULL, LORA = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model on a split."""

    loss: float  # nats per counted token
    accuracy: float  # share of examples whose every counted token is the likeliest
    digest: str  # hash of the loss of each example


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenized examples of one split, all of one length."""

    ids: torch.Tensor  # token ids, padded on the right [examples, tokens]
    real: torch.Tensor  # True where a token is none of the padding [examples, tokens]
    places: torch.Tensor  # places of the counted tokens, padded with 1 [examples, answers]
    targets: torch.Tensor  # counted tokens [examples, answers]
    counted: torch.Tensor  # 1 where a target is none of the padding [examples, answers]

    def __len__(self) -> int:
        return len(self.ids)


def tensors_of(
    examples: Sequence[ProbeExample], length: int, answers: int, device: torch.device
) -> Examples:
    """Pad tokenized examples to one length."""
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    real = torch.zeros(len(examples), length, dtype=torch.bool)
    places = torch.ones(len(examples), answers, dtype=torch.long)
    targets = torch.zeros(len(examples), answers, dtype=torch.long)
    counted = torch.zeros(len(examples), answers)
    for row, item in enumerate(examples):
        where = [place for place, counts in enumerate(item.counted) if counts]
        ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        real[row, : len(item.input_ids)] = True
        places[row, : len(where)] = torch.tensor(where)
        targets[row, : len(where)] = torch.tensor([item.input_ids[place] for place in where])
        counted[row, : len(where)] = 1.0
    return Examples(*(part.to(device) for part in (ids, real, places, targets, counted)))


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of an arm and its first values."""

    weight: torch.Tensor  # base weight [out, in]
    full: bool  # the weight is trained
    # First values of the adapter's `A` [rank, in], where there is one.
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None  # those of `B` [out, rank]
    scaling: float = 1.0  # what `B A` is multiplied by
    magnitude: torch.Tensor | None = None  # first magnitudes of DoRA [out]

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """First values of what is trained."""
        parts = {"a": self.a, "b": self.b, "magnitude": self.magnitude}
        found = {name: value for name, value in parts.items() if value is not None}
        return {"weight": self.weight} if self.full else found


def linears_of(wrapped: nn.Module) -> dict[str, Linear]:
    """The linear layers of the blocks of a model that PEFT wrapped, by name in the base model.

    Raises:
        ValueError: Something is trained that this cannot train.
    """
    model = wrapped.get_base_model()
    found: dict[str, Linear] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found) or "layers." not in name:
            continue
        if isinstance(module, LoraLayer):
            magnitudes = module.lora_magnitude_vector
            found[name] = Linear(
                weight=module.get_base_layer().weight.detach(),
                full=False,
                a=module.lora_A[ADAPTER].weight.detach(),
                b=module.lora_B[ADAPTER].weight.detach(),
                scaling=float(module.scaling[ADAPTER]),
                magnitude=magnitudes[ADAPTER].weight.detach() if ADAPTER in magnitudes else None,
            )
        elif isinstance(module, ModulesToSaveWrapper):
            weight = module.modules_to_save[ADAPTER].weight
            found[name] = Linear(weight=weight.detach(), full=weight.requires_grad)
        elif isinstance(module, nn.Linear):
            found[name] = Linear(weight=module.weight.detach(), full=module.weight.requires_grad)
    trained = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    if trained != sum(v.numel() for item in found.values() for v in item.trained.values()):
        raise ValueError("Other parameters than weights and adapters of the blocks are trained.")
    return found


class Stack:
    """Several trainings of one arm.

    Args:
        base: The base model, for all that no arm trains.
        linears: The linear layers of its blocks, with the first values of any seed.
        train: Training examples.
        trainings: How many run at once.
        steps: Optimizer steps.
        batch: Examples of a step.
        dtype: Of what linear layers compute; `None` is bfloat16 on a GPU and float32 on a CPU.
    """

    def __init__(
        self,
        base: LlamaForCausalLM,
        linears: Mapping[str, Linear],
        train: Examples,
        *,
        trainings: int,
        steps: int,
        batch: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        if base.config.attention_bias or base.config.mlp_bias:
            raise ValueError("Biases are not supported.")
        device = train.ids.device
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._config, self._linears, self._train = base.config, linears, train
        self._count, self._steps, self._batch = trainings, steps, batch
        self._device = device
        # A GPU repeats a graph of fixed shapes; trainings side by side have tokens of their own.
        self._packs = device.type == "cpu" and trainings == 1
        self._embedding = base.get_input_embeddings().weight.detach().to(device)
        self._head = base.get_output_embeddings().weight.detach().to(device, dtype)
        self._norms = {
            name: value.detach().to(device)
            for name, value in base.named_parameters()
            if "norm" in name
        }
        places = torch.arange(train.ids.shape[1], device=base.device)[None]
        cos, sin = base.model.rotary_emb(torch.zeros(1, device=base.device), places)
        half = cos.shape[-1] // 2
        # A rolled vector times these is the rotated half of the model times its sine.
        sign = torch.cat([-torch.ones(half), torch.ones(half)])
        self._cos, self._sin = (
            value.to(device)[:, :, None] for value in (cos, sin * sign.to(sin.device))
        )
        self._frozen = {
            name: item.weight.to(device, dtype) for name, item in linears.items() if not item.full
        }
        keys = [
            (FULL if part == "weight" else LORA, name, part, value.shape)
            for name, item in linears.items()
            for part, value in item.trained.items()
        ]
        keys.sort(key=lambda key: key[0])
        sizes = [shape.numel() for *_, shape in keys]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        border = sum(size for key, size in zip(keys, sizes, strict=True) if key[0] == FULL)
        self.trained_params = sum(sizes)
        self._spans = {
            (name, part): (end - size, end, shape)
            for (_, name, part, shape), size, end in zip(keys, sizes, ends, strict=True)
        }
        self._values = torch.zeros(trainings, self.trained_params, device=device)
        self._gradient = torch.zeros_like(self._values)
        # What is computed with: a copy in the dtype of the linear layers, or the values themselves.
        self._computed = self._values if dtype == torch.float32 else self._values.to(dtype)
        # Magnitudes are few, and rounding them would round whole rows.
        self._leaves = {
            key: self._view(self._values if key[1] == "magnitude" else self._computed, key)
            .detach()
            .requires_grad_()
            for key in self._spans
        }
        groups = []
        for row in range(trainings):
            for start, end in ((0, border), (border, self.trained_params)):
                # A group without parameters keeps its place, so that places of rates are fixed.
                part = nn.Parameter(self._values[row, start:end])
                part.grad = self._gradient[row, start:end]
                groups.append({"params": [part] if end > start else []})
        self._rates = torch.zeros(len(groups), device=device)
        self._peaks = torch.zeros(len(groups), device=device)
        self._optimizer = torch.optim.AdamW(
            groups, lr=torch.tensor(0.0, device=device), betas=BETAS, eps=EPSILON,
            weight_decay=0.0, fused=True, capturable=device.type == "cuda",
        )  # fmt: skip
        for place, group in enumerate(self._optimizer.param_groups):
            group["lr"] = self._rates[place]
        self._step = torch.zeros((), dtype=torch.long, device=device)
        self._order = torch.zeros(steps, trainings * batch, dtype=torch.long, device=device)
        self.curve = torch.zeros(steps, trainings, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tried_capture = device.type != "cuda"

    def run(self, trials: Sequence[Trial], starts: Sequence[Mapping[str, Linear]]) -> float:
        """Train.

        Returns:
            Seconds of the steps; capturing is not counted.
        """
        if not self._tried_capture:
            self._tried_capture = True
            try:
                self._capture()
            except RuntimeError as error:
                self._graph = None
                print(f"no CUDA graph, the steps run one by one: {error}", flush=True)
        self._reset(trials, starts)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        began = time.monotonic()
        with terminal_progress() as progress:
            progress.start("training", self._steps, "steps")
            for _ in range(self._steps):
                if self._graph is None:
                    self._train_step()
                else:
                    self._graph.replay()
                progress.advance(1)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began

    def measure(self, examples: Examples, *, batch: int = 64) -> list[Measured]:
        """Loss and exact matches of every training on the examples of a split."""
        losses, exact = [], []
        for start in range(0, len(examples), batch):
            rows = torch.arange(start, min(start + batch, len(examples)), device=self._device)
            with torch.no_grad():
                nats, right = self._losses(examples, rows.repeat(self._count))
            losses.append(nats.view(self._count, len(rows), -1).sum(dim=2))
            exact.append(right.view(self._count, len(rows)))
        sums = torch.cat(losses, dim=1).double().cpu()
        matches = torch.cat(exact, dim=1).double().mean(dim=1).cpu()
        tokens = float(examples.counted.sum())
        return [
            Measured(
                loss=float(row.sum()) / tokens,
                accuracy=float(share),
                digest=hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16],
            )
            for row, share in zip(sums, matches, strict=True)
        ]

    def values(self, row: int, name: str, part: str = "weight") -> torch.Tensor:
        """What a training has made of a part of a linear layer."""
        return self._view(self._values, (name, part))[row].detach()

    def _view(self, flat: torch.Tensor, key: tuple[str, str]) -> torch.Tensor:
        start, end, shape = self._spans[key]
        return flat[:, start:end].view(self._count, *shape)

    def _reset(self, trials: Sequence[Trial], starts: Sequence[Mapping[str, Linear]]) -> None:
        """Go back to the first step, in place: a captured graph knows addresses only."""
        for row, linears in enumerate(starts):
            for name, item in linears.items():
                for part, value in item.trained.items():
                    self._view(self._values, (name, part))[row].copy_(value)
        if self._computed is not self._values:
            self._computed.copy_(self._values)
        orders = [data_order(trial.seed, len(self._train), self._steps, self._batch)
                  for trial in trials]  # fmt: skip
        self._order.copy_(torch.cat(orders, dim=1))
        peaks = [rate for trial in trials for rate in (trial.full_rate, trial.lora_rate)]
        self._peaks.copy_(torch.tensor(peaks))
        self._step.zero_()
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Allocates the state of the optimizer and what libraries allocate on first use.
            for _ in range(2):
                self._train_step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._train_step()

    def _train_step(self) -> None:
        rows = self._order.index_select(0, self._step.clamp(max=self._steps - 1)[None])[0]
        nats, _ = self._losses(self._train, rows)
        counted = self._train.counted[rows].view(self._count, -1).sum(dim=1)
        losses = nats.view(self._count, -1).sum(dim=1) / counted
        leaves = list(self._leaves.values())
        # Each training has weights of its own: the gradient of the sum is that of each loss.
        gradients = torch.autograd.grad(losses.sum(), leaves)
        for key, gradient in zip(self._leaves, gradients, strict=True):
            self._view(self._gradient, key).copy_(gradient)
        norms = torch.linalg.vector_norm(self._gradient, dim=1, keepdim=True)
        self._gradient.mul_((LARGEST_NORM / (norms + 1e-6)).clamp(max=1.0))
        self.curve.index_copy_(
            0, self._step.clamp(max=self._steps - 1)[None], losses.detach()[None]
        )
        self._step.add_(1)
        warmup = WARMUP * self._steps
        rising = self._step / warmup
        falling = (self._steps + 1 - self._step) / (self._steps - warmup)
        self._rates.copy_(self._peaks * torch.minimum(rising, falling).clamp(0.0, 1.0))
        self._optimizer.step()
        if self._computed is not self._values:
            self._computed.copy_(self._values)

    def _losses(self, examples: Examples, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats of the counted tokens [rows, answers], and whether all of a row are likeliest."""
        hidden = self._hidden(examples.ids[rows], examples.real[rows] if self._packs else None)
        before = (examples.places[rows] - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
        hidden = self._normed(hidden.gather(1, before), "model.norm.weight")
        logits = functional.linear(hidden.to(self._head.dtype), self._head).float()
        targets, counted = examples.targets[rows], examples.counted[rows]
        nats = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(counted)
        right = (logits.detach().argmax(dim=-1) == targets) | (counted == 0)
        return nats * counted, right.all(dim=1)

    def _hidden(self, ids: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """The residual stream after the last block [rows, tokens, width]; zero where not `real`."""
        if real is not None:
            longest = int(real.sum(dim=1).max())
            ids, real = ids[:, :longest], real[:, :longest]
        config, (rows, tokens) = self._config, ids.shape
        heads, width = config.num_attention_heads, config.head_dim
        cos, sin = self._cos[:, :tokens], self._sin[:, :tokens]

        places = None if real is None else real.flatten().nonzero()[:, 0]

        def packed(flat: torch.Tensor) -> torch.Tensor:
            return flat if places is None else flat[:, places]

        def padded(flat: torch.Tensor) -> torch.Tensor:
            if places is None:
                return flat
            return flat.new_zeros(1, rows * tokens, flat.shape[-1]).index_copy(1, places, flat)

        def split(flat: torch.Tensor) -> torch.Tensor:
            return padded(flat).view(rows, tokens, -1, width)

        def rotated(given: torch.Tensor) -> torch.Tensor:
            turned = torch.roll(given, width // 2, dims=-1)
            return (given * cos + turned * sin).to(given.dtype).transpose(1, 2)

        hidden = packed(self._embedding[ids].view(self._count, -1, config.hidden_size))

        for number in range(config.num_hidden_layers):
            block = f"model.layers.{number}"
            x = self._normed(hidden, f"{block}.input_layernorm.weight")
            query, key, value = (
                split(self._linear(f"{block}.self_attn.{part}_proj", x)) for part in "qkv"
            )
            attended = functional.scaled_dot_product_attention(
                rotated(query), rotated(key), value.transpose(1, 2),
                is_causal=True, enable_gqa=heads != config.num_key_value_heads,
            )  # fmt: skip
            attended = packed(attended.transpose(1, 2).reshape(self._count, -1, heads * width))
            hidden = hidden + self._linear(f"{block}.self_attn.o_proj", attended)
            x = self._normed(hidden, f"{block}.post_attention_layernorm.weight")
            gate = functional.silu(self._linear(f"{block}.mlp.gate_proj", x))
            up = self._linear(f"{block}.mlp.up_proj", x)
            hidden = hidden + self._linear(f"{block}.mlp.down_proj", gate * up)
        return padded(hidden).view(rows, tokens, -1)

    def _normed(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._norms[name]
        normed = functional.rms_norm(hidden, weight.shape, weight, self._config.rms_norm_eps)
        return normed.to(self._head.dtype)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A linear layer of every training on its own rows [trainings, rows, in]."""
        if (name, "weight") in self._leaves:
            return torch.bmm(x, self._leaves[name, "weight"].mT)
        frozen, item = self._frozen[name], self._linears[name]
        result = functional.linear(x, frozen)
        if (name, "a") not in self._leaves:
            return result
        a, b = self._leaves[name, "a"], self._leaves[name, "b"]
        result = torch.baddbmm(result, torch.bmm(x, a.mT) * item.scaling, b.mT)
        if (name, "magnitude") not in self._leaves:
            return result
        with torch.no_grad():
            whole = torch.baddbmm(frozen.expand(self._count, -1, -1), b, a, alpha=item.scaling)
            norms = torch.linalg.vector_norm(whole, dim=2, dtype=torch.float32)
        return (result * (self._leaves[name, "magnitude"] / norms)[:, None]).to(result.dtype)


def data_order(seed: int, examples: int, steps: int, batch: int) -> torch.Tensor:
    """The examples of each step [steps, batch], epoch by epoch; the same for every arm."""
    draw = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch // examples)
    order = torch.cat([torch.randperm(examples, generator=draw) for _ in range(epochs)])
    return order[: steps * batch].view(steps, batch)
