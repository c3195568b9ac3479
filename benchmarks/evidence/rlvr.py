"""The study with rewards: GRPO through TRL's trainer, on answers that a program can check.

`python benchmarks/evidence/rlvr.py` trains a base model on `next` until it is right more often
than not, and goes on with rewards only. Finished arms are kept like those of `study.py`.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from arms import Arm, Planner, hybrid, seeded
from bases import load_base
from datasets import Dataset
from journal import REWARDED, Journal, path_of
from published import parsed
from stacked import Trained, Trial, train
from study import RANK, equal_arm
from transformers import LlamaForCausalLM
from transformers.trainer_callback import PrinterCallback
from trials import best_of, keep, trainable, trials_at, tune
from trl import GRPOConfig, GRPOTrainer
from world import LIST_LENGTH, Row, encode, fine_tuning_tasks, new_world, tokenizer

import hlscore

TASK = "next"
STEPS, PROMPTS, GENERATIONS = 120, 16, 8
# Supervised steps before rewards take over, and their learning rate.
WARM_STEPS, WARM_RATE = 60, 1e-3
FULL_RATES, LORA_RATES = (1e-3,), (4e-3,)
MOST_RATES = 7
DRAWS = 3
PROBE_PROMPTS, TUNING_PROMPTS, TEST_PROMPTS = 128, 128, 512
OTHER_SCORES = ("l1_adam", "spectral")
OTHER_RANKS = (1, 12)
# AdaLoRA wants to be told of every step, which the trainer does not do.
PEERS = ("dora", "rslora", "pissa", "olora")


def share_right(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """Share of the words of a completion that stand where the answer has them; the reward."""
    found = []
    for completion, right in zip(completions, answer, strict=True):
        given, wanted = completion.split(), right.split()
        longest = max(len(given), len(wanted))
        found.append(sum(a == b for a, b in zip(given, wanted, strict=False)) / longest)
    return found


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """A base model that learns from rewards."""

    base: str  # name of the base model
    values: Mapping[str, torch.Tensor]  # parameters of the model that rewards begin with

    def model(self) -> LlamaForCausalLM:
        """A fresh model."""
        model = load_base(self.base)
        model.load_state_dict(self.values, strict=False)
        model.tie_weights()
        return model

    def train(self, arm: Arm, trials: Sequence[Trial]) -> list[Trained]:
        """Train an arm, one training after the other."""
        return [self._trained(arm, trial) for trial in trials]

    def _trained(self, arm: Arm, trial: Trial) -> Trained:
        model = seeded(arm, self.model, trial.seed)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _trainer(model, trial, folder).train()
        losses, accuracy = measured(model, rows((7, 2), TEST_PROMPTS))
        tuning, _ = measured(model, rows((7, 1), TUNING_PROMPTS))
        return Trained(
            trial=trial, curve=(), tuning_loss=float(np.mean(tuning)), losses=tuple(losses),
            accuracy=accuracy,
        )  # fmt: skip


def rows(seed: Sequence[int], count: int) -> list[Row]:
    """Prompts with their answers."""
    drawn = fine_tuning_tasks(new_world())[TASK].draw(np.random.default_rng(seed), count)
    return [{"prompt": row["prompt"].strip(), "answer": row["completion"]} for row in drawn]


@torch.no_grad()
def measured(model: Any, asked: Sequence[Row]) -> tuple[list[float], float]:
    """Lost reward of four sampled answers to each prompt, and the share of right answers.

    Args:
        asked: Prompts of one length, with answers.

    Returns:
        One minus the mean reward of each prompt [prompts], and the share of prompts whose likeliest
        answer is all right.
    """
    model.eval()
    words = tokenizer()
    ids = words([row["prompt"] for row in asked], return_tensors="pt")["input_ids"]
    lengths = {"max_new_tokens": LIST_LENGTH + 1, "pad_token_id": words.pad_token_id}
    answers = [row["answer"] for row in asked]

    def rewards(repeats: int, **options: Any) -> np.ndarray:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True,
                num_return_sequences=repeats, **lengths, **options,
            )[:, ids.shape[1] :]  # fmt: skip
        texts = words.batch_decode(found, skip_special_tokens=True)
        wanted = [answer for answer in answers for _ in range(repeats)]
        return np.array(share_right(texts, wanted)).reshape(-1, repeats)

    sampled = rewards(4, do_sample=True, temperature=1.0, top_k=0).mean(axis=1)
    return (1 - sampled).tolist(), float((rewards(1, do_sample=False) == 1.0).mean())


def optimizers(
    model: Any, *, full_rate: float, lora_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a rate for adapters and one for all else, warming up for a tenth of the steps."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["lora_" in name].append(parameter)
    rates = {True: lora_rate, False: full_rate}
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rates[key]} for key, group in groups.items() if group],
        weight_decay=0.0,
    )
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm), 1.0)
    )
    return optimizer, schedule


def _trainer(model: Any, trial: Trial, folder: str) -> GRPOTrainer:
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=share_right,
        args=GRPOConfig(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=PROMPTS * GENERATIONS,
            num_generations=GENERATIONS, max_completion_length=LIST_LENGTH + 1, temperature=1.0,
            beta=0.0, max_grad_norm=1.0, seed=trial.seed, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(
            rows((trial.seed,), STEPS * PROMPTS)
        ),
        processing_class=tokenizer(),
        optimizers=optimizers(
            model, full_rate=trial.full_rate, lora_rate=trial.lora_rate, steps=STEPS
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def warmed(base: str) -> Rewarded:
    """The base model after a few supervised steps on the task: uncertain, and often right."""
    task = fine_tuning_tasks(new_world())[TASK]
    examples = encode(task.draw(np.random.default_rng((7, 1)), 64))
    trial = Trial(seed=300, full_rate=WARM_RATE, lora_rate=0.0)
    _, values = train(
        load_base(base), [trial],
        lambda seed, step: encode(task.draw(np.random.default_rng((seed, step)), task.batch_size)),
        steps=WARM_STEPS, measured=(), tuning=examples, test=examples,
    )  # fmt: skip
    return Rewarded(base=base, values={name: value[0].detach() for name, value in values.items()})


def run_arm(setup: Rewarded, journal: Journal, arm: Arm) -> None:
    """Tune an arm's rates on a seed of its own and train it with every seed."""
    if arm.name in journal.arms:
        return
    began = time.monotonic()
    tuned = tune(
        arm.kind, partial(setup.train, arm), full_rates=FULL_RATES, lora_rates=LORA_RATES,
        most=MOST_RATES,
    )  # fmt: skip
    found = setup.train(arm, trials_at(best_of(tuned)))
    parameters = trainable(arm.wrap(setup.model()))
    keep(journal, arm, found, began, tuned, parameters)


def run_study(base: str, only: Sequence[str] | None = None) -> None:
    """Run all arms, or those with the given names."""
    setup = warmed(base)
    losses, accuracy = measured(setup.model(), rows((7, 2), TEST_PROMPTS))
    print(f"{base}: lost reward {np.mean(losses):.4f}, right {accuracy:.3f}", flush=True)
    settings = {
        "rank": RANK, "steps": STEPS, "prompts": PROMPTS, "generations": GENERATIONS,
        "warm": [WARM_STEPS, WARM_RATE], "base": base, "task": REWARDED,
    }  # fmt: skip
    journal = Journal(path_of(base, REWARDED), settings)
    report = hlscore.rank(
        setup.model(), tokenizer(), data=rows((7, 0), PROBE_PROMPTS), samples=0, rank=RANK,
        objective="grpo", max_new_tokens=LIST_LENGTH + 1, generations=GENERATIONS,
        reward=share_right, checkpointing=False, estimator="exact", weight_scores=True,
    ).report  # fmt: skip
    planner = Planner(report=report, rank=RANK)
    chosen = planner.scored("hls")
    arms = [
        planner.full(), planner.lora(RANK), planner.matched(chosen),
        hybrid("hybrid hls", chosen),
        *(planner.lora(rank) for rank in OTHER_RANKS),
        *(planner.peer(method) for method in PEERS),
        *(equal_arm(planner, draw) for draw in range(DRAWS)),
        *(hybrid(f"hybrid {score}", planner.scored(score)) for score in OTHER_SCORES),
    ]  # fmt: skip
    for arm in arms:
        if only is None or arm.name in only:
            run_arm(setup, journal, arm)


def main() -> None:
    """Read the command line and run."""
    arm = {"action": "append", "help": "name of an arm; all where none is named"}
    options = parsed(__doc__, base="small", arm=arm)
    torch.set_num_threads(1)
    run_study(options.base, options.arm)


if __name__ == "__main__":
    main()
