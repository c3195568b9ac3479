"""Makes the built-in probes and trains the built-in tiny model, from nothing.

``python benchmarks/builtin_model.py`` writes ``probes.jsonl`` and ``tiny/`` into the package and
a dated record of the run into ``benchmarks/results``.  ``--out DIR`` writes everything below DIR
instead, and ``--steps N`` makes a short trial.  Reported losses are means over completion tokens
(the end-of-text token counts, the prompt does not).  The training loss is over all tokens, with
prompt tokens at a tenth of the weight.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from builtin_corpus import (
    KINDS,
    PROBE_COUNTS,
    Example,
    distinct_examples,
    extract_answer,
    probe_examples,
    training_stream,
)
from machine import parsed, processor
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_DIR = ROOT / "hlscore" / "inputs" / "builtin"
# What can be trained here: the built-in model and the one of `second_model.py`.
Decoder = LlamaForCausalLM | Qwen3ForCausalLM
END, PAD = "<|endoftext|>", "<|pad|>"
# Digits stand alone, and a sign keeps the space before a digit, which shortens sums.
PIECES = r"\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+(?: (?=\d))?|\n+| +|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ (message['content'] | trim) + '\\n' }}{% endif %}{% endfor %}"
)
# What was tried before the settings below: one seed each, a peak rate of 3e-3 unless told
# otherwise, and wording of a few templates that changed in between, so small gaps mean nothing.
# "Running" is the smoothed training loss over completion tokens.
EXPERIMENTS: tuple[str, ...] = (
    "batch 48, no prompt loss, init 0.02, 100 steps: held-out 2.634, 11/320 right: too short",
    "batch 48, no prompt loss, init 0.02, 233 steps: held-out 1.342, 15/320 right: too few steps",
    "batch 16, no prompt loss, init 0.02, 700 steps (as many tokens): held-out 0.774, 27/320 right",
    "the same on the way: running 1.526 at step 300, 1.186 at 400, 0.841 at 600",
    "with prompt weight 0.1, stopped at 600 of 700: running 1.414 at step 300, 0.790 at 600",
    "with init 0.06 instead, stopped at 400 of 700: running 1.026 at step 300, 0.796 at 400",
    "prompt weight 0.1, init 0.06, peak rate 5e-3, stopped at 500 of 700: running 0.886 at 400",
    "the last is worse than init 0.06 alone, but two things changed, so the cause is open",
    "prompt weight 0.1 and init 0.06 at 3e-3 had no trial of their own before the full run",
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of the result on one machine."""

    steps: int
    batch_size: int = 16
    pool_batches: int = 48
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 60
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    prompt_weight: float = 0.1
    init_std: float = 0.06
    seed: int = 20261123
    tokenizer_examples: int = 20000
    heldout_per_kind: int = 100
    threads: int = 1


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; ``start`` is where its completion begins."""

    ids: list[int]
    start: int


def build_tokenizer(examples: Sequence[Example], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE tokenizer on whole examples."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((e["prompt"] + e["completion"] for e in examples), trainer)
    make_tokenizer: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    wrapped: PreTrainedTokenizerFast = make_tokenizer(
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast, init_std: float) -> LlamaForCausalLM:
    """Returns the untrained decoder; the caller seeds torch first."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> list[Encoded]:
    """Encodes prompt and completion apart, so the boundary is the same as when generating."""
    prompts = tokenizer([e["prompt"] for e in examples])["input_ids"]
    completions = tokenizer([e["completion"] for e in examples])["input_ids"]
    end = tokenizer.eos_token_id
    return [
        Encoded([*prompt, *completion, end], len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def collate(batch: Sequence[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads on the right and returns ids, the prompt mask and the completion mask of targets."""
    width = max(len(e.ids) for e in batch)
    ids = torch.full((len(batch), width), pad)
    prompt = torch.zeros((len(batch), width - 1), dtype=torch.bool)
    completion = torch.zeros_like(prompt)
    for row, e in enumerate(batch):
        ids[row, : len(e.ids)] = torch.tensor(e.ids)
        prompt[row, : e.start - 1] = True
        completion[row, e.start - 1 : len(e.ids) - 1] = True
    return ids, prompt, completion


def masked_loss(model: Decoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every masked target.

    Padding stands on the right of a causal model, so it needs no attention mask.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[mask])
    return functional.cross_entropy(logits, ids[:, 1:][mask], reduction="none")


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Example], settings: Settings
) -> Iterator[list[Encoded]]:
    """Yields batches of like length out of a pool, which keeps padding low."""
    rng = random.Random(settings.seed)
    size = settings.batch_size
    while True:
        pool = encode(tokenizer, list(islice(stream, size * settings.pool_batches)))
        pool.sort(key=lambda e: len(e.ids))
        parts = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(parts)
        yield from parts


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[Example],
    settings: Settings,
) -> dict[str, float]:
    """Trains in place and returns counts and wall time."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    pad = int(tokenizer.pad_token_id)
    tokens, counted, recent, begun = 0, 0, 0.0, time.monotonic()
    model.train()
    for step, batch in enumerate(islice(batches(tokenizer, stream, settings), settings.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        ids, prompt, completion = collate(batch, pad)
        mask = completion | prompt if settings.prompt_weight else completion
        losses = masked_loss(model, ids, mask)
        weights = torch.where(completion[mask], 1.0, settings.prompt_weight)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        tokens += sum(len(e.ids) for e in batch)
        counted += int(completion.sum())
        mean = float(losses.detach()[completion[mask]].mean())
        recent = mean if step == 0 else 0.97 * recent + 0.03 * mean
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            spent = time.monotonic() - begun
            print(
                f"step {step + 1}/{settings.steps}  loss {recent:.4f}  {tokens / spent:.0f} tok/s"
                f"  {spent:.0f} s",
                flush=True,
            )
    seconds = round(time.monotonic() - begun, 1)
    return {"train_seconds": seconds, "train_tokens": tokens, "completion_tokens": counted}


@torch.no_grad()
def completion_loss(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> float:
    """Returns the mean loss in nats per counted completion token."""
    model.train(False)
    encoded = sorted(encode(tokenizer, examples), key=lambda e: len(e.ids))
    total, count = 0.0, 0
    for start in range(0, len(encoded), 40):
        ids, _, mask = collate(encoded[start : start + 40], int(tokenizer.pad_token_id))
        total += float(masked_loss(model, ids, mask).sum())
        count += int(mask.sum())
    return total / count


@torch.no_grad()
def right_answers(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], **how: Any
) -> Iterator[tuple[Example, list[bool]]]:
    """Decodes as ``generate`` is told and yields which texts of an example match exactly."""
    model.train(False)
    tokenizer.padding_side = "left"
    decoder: Any = model  # the published types of generate() do not admit a concrete model
    ordered = sorted(examples, key=lambda e: len(e["prompt"]))
    for start in range(0, len(ordered), 40):
        part = ordered[start : start + 40]
        inputs = tokenizer([e["prompt"] for e in part], return_tensors="pt", padding=True)
        output = decoder.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=96,
            **how,
        )
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        each = len(texts) // len(part)
        for row, e in enumerate(part):
            own = texts[row * each : (row + 1) * each]
            yield e, [extract_answer(text, e["kind"]) == e["answer"] for text in own]
    tokenizer.padding_side = "right"


def exact_accuracy(
    model: Decoder, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> dict[str, dict[str, int]]:
    """Decodes greedily and counts answers that match exactly, by kind."""
    counts: dict[str, dict[str, int]] = {kind: {"correct": 0, "total": 0} for kind in KINDS}
    for example, right in right_answers(model, tokenizer, examples, do_sample=False):
        count = counts[example["kind"]]
        count["total"] += 1
        count["correct"] += right[0]
    return counts


def sha256(path: Path) -> str:
    """Returns the hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    max_bytes: int | None = 4_000_000,
) -> None:
    """Saves both and checks that the saved files load and are small enough to ship."""
    tokenizer.save_pretrained(folder)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # The name that releases before and after 5.0 both know.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # the weights are written for the owner only, but they are shipped
    size = (folder / "model.safetensors").stat().st_size
    if max_bytes is not None and size >= max_bytes:
        raise RuntimeError(f"model.safetensors has {size} bytes, too many to ship")
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "Work out 12 + 30.\n\ndef f(x):\n    return x  # naïve 7"
    if loaded(text)["input_ids"] != tokenizer(text)["input_ids"] or (
        loaded.decode(loaded(text)["input_ids"]) != text
    ):
        raise RuntimeError("the saved tokenizer does not give back its text")
    again = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in model.state_dict().items():
        if not torch.equal(value, again.state_dict()[name]):
            raise RuntimeError(f"{name} changed when saved")


def held_out(probes: Sequence[Example], settings: Settings) -> tuple[list[Example], frozenset[str]]:
    """Returns the held-out examples and all prompts that training must not see."""
    probe_prompts = frozenset(e["prompt"] for e in probes)
    heldout = distinct_examples(
        settings.seed + 1, dict.fromkeys(KINDS, settings.heldout_per_kind), probe_prompts
    )
    taken = probe_prompts | {e["prompt"] for e in heldout}
    if len(taken) != len(probes) + len(heldout):
        raise RuntimeError("a prompt is both a probe and held out")
    return heldout, taken


def train_and_measure(
    model: Decoder,
    tokenizer: PreTrainedTokenizerFast,
    sets: dict[str, list[Example]],
    taken: frozenset[str],
    settings: Settings,
) -> dict[str, Any]:
    """Trains in place and returns the record; ``sets`` are ``heldout`` and ``probes``."""
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens", flush=True)
    probes = sets["probes"]
    before = {name: completion_loss(model, tokenizer, rows) for name, rows in sets.items()}
    print(f"before: {before}", flush=True)
    seen: set[str] = set()
    answered: set[str] = set()

    def watched() -> Iterator[Example]:
        for example in training_stream(settings.seed + 3, taken):
            seen.add(example["prompt"])
            answered.add(example["completion"])
            yield example

    counts = train(model, tokenizer, watched(), settings)
    if not seen.isdisjoint(taken):
        raise RuntimeError("a training prompt is also a probe or held out")
    after = {name: completion_loss(model, tokenizer, rows) for name, rows in sets.items()}
    accuracy = exact_accuracy(model, tokenizer, probes)
    correct = sum(c["correct"] for c in accuracy.values())
    return {
        "parameters": model.num_parameters(),
        "probes_by_kind": PROBE_COUNTS,
        "training": {**counts, "distinct_prompts": len(seen)},
        "loss_unit": "nats per completion token, end-of-text counted",
        "loss_before": before,
        "loss_after": after,
        # No probe prompt is in the training text, but its sum may be, asked in other words.
        "probe_completions_seen_in_training": {
            kind: sum(e["completion"] in answered for e in probes if e["kind"] == kind)
            for kind in KINDS
        },
        "probe_accuracy": {**accuracy, "all": {"correct": correct, "total": len(probes)}},
    }


def make(out: Path, settings: Settings) -> dict[str, Any]:
    """Makes probes, tokenizer and model below ``out`` and returns the record of the run."""
    begun = time.monotonic()
    probes = probe_examples()
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in probes)
    (out / "probes.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    heldout, taken = held_out(probes, settings)
    sample = list(islice(training_stream(settings.seed + 2, taken), settings.tokenizer_examples))
    tokenizer = build_tokenizer(sample, 768)
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer, settings.init_std)
    sets = {"heldout": heldout, "probes": probes}
    measured = train_and_measure(model, tokenizer, sets, taken, settings)
    save(model, tokenizer, out / "tiny")
    return {
        "hardware": {"cpu": processor(), "cores": os.cpu_count(), "threads_used": settings.threads},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "settings": asdict(settings),
        **measured,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "sha256": {
            "model.safetensors": sha256(out / "tiny" / "model.safetensors"),
            "tokenizer.json": sha256(out / "tiny" / "tokenizer.json"),
            "probes.jsonl": sha256(out / "probes.jsonl"),
        },
        "bytes": {"model.safetensors": (out / "tiny" / "model.safetensors").stat().st_size},
        "experiments": list(EXPERIMENTS),
    }


def main() -> None:
    """Reads the command line, makes everything and writes the record."""
    plain = Settings(steps=3800)
    tunable = ("steps", "learning_rate", "prompt_weight", "batch_size", "init_std")
    options = parsed(
        __doc__,
        out={"type": Path, "default": PACKAGE_DIR, "help": "where the files go"},
        **{name: getattr(plain, name) for name in tunable},
    )
    settings = replace(plain, **{name: getattr(options, name) for name in tunable})
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    record = {"date": dt.date.today().isoformat(), **make(options.out, settings)}
    in_package = options.out.resolve() == PACKAGE_DIR
    results = ROOT / "benchmarks" / "results" if in_package else options.out
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"builtin_model_{record['date']}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: record[k] for k in ("loss_before", "loss_after", "probe_accuracy")}))
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
