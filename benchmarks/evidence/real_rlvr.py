"""Does a hybrid pay with rewards, on a real model? SmolLM2-135M-Instruct and GRPO through TRL.

`python benchmarks/evidence/real_rlvr.py --task letter_jumble --minutes 9` is meant for a GPU. A few
supervised steps teach the model how an answer looks; then every arm is trained with the reward of
reasoning-gym alone, at rates that a seed of its own chose. It stops before the minutes are over
and goes on when it is called again: every finished training is a line of
`benchmarks/.models/real/rlvr/TASK.jsonl`. `--smoke` runs 3 steps of two arms in a scratch folder,
on a CPU too, and fails unless rewards come out and exactly the planned tensors move.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from arms import Arm, Planner, full_modules, hybrid, seeded
from datasets import Dataset
from journal import Journal
from real_study import (
    RANK,
    TUNING_SEED,
    WAYS,
    Clock,
    TimeOverError,
    device_name,
    key_of,
    loaded,
)
from real_tasks import FOLDER, MODELS, Row, read
from real_training import Trial
from replicas import largest
from rlvr import optimizers
from transformers import LlamaForCausalLM
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import hlscore
from hlscore.artifacts.report import read_report, write_report
from hlscore.records import ScoreReport
from hlscore.rollouts.records import write_rollouts

GRADIENTS, TRIALS, *_ = WAYS
LONGEST_ANSWER = 24
# Answers to each prompt when a model is measured.
ANSWERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is trained and measured. Rates are half decades: -9 is 10 ** -4.5."""

    steps: int = 100  # steps of GRPO
    prompts: int = 16  # prompts of a step
    generations: int = 8  # completions of each prompt
    warm_steps: int = 60  # supervised steps before, of `warm_batch` examples at `warm_rate`
    warm_batch: int = 32  # see there
    warm_rate: float = 1e-4  # see there
    probed: int = 128  # prompts whose completions the modules are scored on
    tuning: int = 128  # prompts that choose the rates
    test: int = 512  # prompts that are reported
    full_rates: tuple[int, ...] = (-12, -11, -10)  # rates that full modules begin with
    lora_rates: tuple[int, ...] = (-9, -8, -7)  # rates that adapters begin with
    extensions: int = 2  # rates beyond those
    seeds: tuple[int, ...] = (1, 2, 3)  # trainings that are reported


WHOLE = Size()
SMOKE = Size(
    steps=3, prompts=4, generations=4, warm_steps=3, warm_batch=8, probed=24, tuning=4, test=8,
    # At a tenth of these rates, 3 steps are too small to change a sampled answer.
    full_rates=(-8,), lora_rates=(-6,), extensions=0, seeds=(),
)  # fmt: skip
SMOKE_TASK, SMOKE_ARMS = "spell_backward", (f"lora r={RANK}", f"hybrid hls of {TRIALS}")


def letters_right(answer: str, right: str) -> float:
    """How reasoning-gym scores `spell_backward`: share of letters in their place, of any case."""
    answer, right = answer.lower(), right.lower()
    if answer == right:
        return 1.0
    # A right answer that goes on loses 0.2; reasoning-gym forgets that where its sum is not exact.
    share = sum(a == b for a, b in zip(answer, right, strict=False)) / len(right)
    return 0.8 if share == 1 else share


def words_right(answer: str, right: str) -> float:
    """How reasoning-gym scores `letter_jumble`: share of words in their place, of any case."""
    given, wanted = answer.lower().split(), right.lower().split()
    return sum(a == b for a, b in zip(given, wanted, strict=False)) / len(wanted)


SCORERS: dict[str, Callable[[str, str], float]] = {
    "letter_jumble": words_right,
    "spell_backward": letters_right,
}


def reward_of(task: str) -> Callable[..., list[float]]:
    """The reward of a task, as TRL and hlscore call it."""

    def reward(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
        return [
            SCORERS[task](given.strip(), right)
            for given, right in zip(completions, answer, strict=True)
        ]

    reward.__name__ = task
    return reward


@dataclass(kw_only=True)
class RewardStudy:
    """One task."""

    task: str  # its name
    size: Size  # how much is trained
    base: LlamaForCausalLM  # the model after the supervised steps, on the device of the study
    tokenizer: Any  # its tokenizer, which pads on the left
    rows: Mapping[str, Sequence[Row]]  # prompts with answers of each split
    journal: Journal  # finished trainings and choices
    folder: Path  # of reports and completions
    clock: Clock  # the time of this call
    # The best rates of the plain arms, half decades, by their kind.
    rates: dict[str, int] = field(default_factory=dict)

    def train(self, arm: Arm, trial: Trial) -> dict[str, Any]:
        """The journal's entry of a training, which is done where there is none."""
        key = key_of(arm, trial)
        if key not in self.journal.arms:
            self.clock.timed("training", lambda: self._train(arm, trial))
        return self.journal.arms[key]

    def _train(self, arm: Arm, trial: Trial) -> None:
        began = time.monotonic()
        model: Any = seeded(arm, lambda: deepcopy(self.base), trial.seed)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = self._trainer(model, trial, folder)
            trainer.train()
        moved = {
            name for name, value in model.named_parameters() if not torch.equal(value, before[name])
        }
        if moved - trained:
            raise RuntimeError(f"{arm.name} moved what it does not train: {moved - trained}")
        log = [entry for entry in trainer.state.log_history if "reward" in entry]
        tuning, _ = measured(self, model, self.rows["tuning"][: self.size.tuning])
        test, right = measured(self, model, self.rows["test"][: self.size.test])
        found = {
            "arm": arm.name, "kind": arm.kind, "full": sorted(arm.full), **asdict(trial),
            "parameters": sum(v.numel() for v in model.parameters() if v.requires_grad),
            "tensors": len(trained), "unmoved": sorted(trained - moved),
            "rewards": [round(entry["reward"], 4) for entry in log],
            "gradient_norms": [round(float(entry["grad_norm"]), 4) for entry in log],
            "tuning_reward": round(tuning, 5), "test_reward": round(test, 5),
            "accuracy": round(right, 5), "seconds": round(time.monotonic() - began, 1),
            "device": device_name(self.base.device),
        }  # fmt: skip
        self.journal.add(key_of(arm, trial), found)
        print(
            f"{self.task:16} {arm.name:32} {found['parameters']:11,} parameters, rates "
            f"{trial.full_rate:.3g} {trial.lora_rate:.3g}, seed {trial.seed}: reward "
            f"{found['rewards'][0]:.3f} -> {found['rewards'][-1]:.3f}, test {test:.4f}, exact "
            f"{100 * right:.1f} %, {found['seconds']:.0f} s",
            flush=True,
        )

    def _trainer(self, model: Any, trial: Trial, folder: str) -> GRPOTrainer:
        size, prompts = self.size, self.rows["rewarded"]
        generator = torch.Generator().manual_seed(trial.seed)
        order = torch.randperm(len(prompts), generator=generator)[: size.steps * size.prompts]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward_of(self.task),
            args=GRPOConfig(
                output_dir=folder, max_steps=size.steps, seed=trial.seed,
                per_device_train_batch_size=size.prompts * size.generations,
                num_generations=size.generations, max_completion_length=LONGEST_ANSWER,
                temperature=1.0, beta=0.0, max_grad_norm=1.0, bf16=False,
                use_cpu=self.base.device.type == "cpu", gradient_checkpointing=False,
                report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list([prompts[place] for place in order.tolist()]),
            processing_class=self.tokenizer,
            optimizers=optimizers(
                model, full_rate=trial.full_rate, lora_rate=trial.lora_rate, steps=size.steps
            ),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return trainer

    def best_on(self, arm: Arm, rates: Sequence[int], trial: Callable[[int], Trial]) -> int:
        """The rate with the highest reward on the tuning prompts; the grid grows at its end."""
        rewards: dict[int, float] = {}
        wanted = list(rates)
        while wanted:
            for place in wanted:
                rewards[place] = self.train(arm, trial(place))["tuning_reward"]
            best = max(rewards, key=lambda place: rewards[place])
            around = [place for place in (best - 1, best + 1) if place not in rewards]
            wanted = around if len(rewards) < len(rates) + self.size.extensions else []
        return best

    def run(self, arm: Arm) -> None:
        """Tune an arm and train it with the seeds that are reported.

        The full modules of a hybrid begin around the best rate of full fine-tuning, its adapters
        at the best rate of LoRA; then the adapters may take a lower one.
        """
        full, lora = self.size.full_rates, self.size.lora_rates
        if arm.kind != "hybrid":
            grid = full if arm.kind == "full" else lora
            best = self.best_on(arm, grid, lambda place: trial_at(arm, place, place))
            self.rates.setdefault(arm.kind, best)
            chosen = trial_at(arm, best, best)
        else:
            lora_best = self.rates.get("lora", lora[len(lora) // 2])
            full_best = self.best_on(arm, full, lambda place: trial_at(arm, place, lora_best))
            lower = (lora_best, lora_best - 1)[: 1 + (self.size.extensions > 0)]
            lora_best = max(
                lower,
                key=lambda place: self.train(arm, trial_at(arm, full_best, place))["tuning_reward"],
            )
            chosen = trial_at(arm, full_best, lora_best)
        for seed in self.size.seeds:
            self.train(arm, replace(chosen, seed=seed))

    def report(self, source: str) -> ScoreReport:
        """Scores of the model on completions that it sampled once, computed once."""
        path, sampled = self.folder / f"{source}.parquet", self.folder / "rollouts.jsonl"
        if path.exists():
            return read_report(path)
        options: dict[str, Any] = {
            "objective": "grpo",
            "max_new_tokens": LONGEST_ANSWER,
            "generations": self.size.generations,
        }
        if sampled.exists():
            options = {"objective": "grpo", "rollouts": sampled}
        else:
            options |= {
                "data": list(self.rows["rewarded"][: self.size.probed]),
                "reward": reward_of(self.task),
            }
        result = self.clock.timed(
            source,
            lambda: hlscore.rank(
                deepcopy(self.base), self.tokenizer, rank=RANK, samples=0, checkpointing=False,
                **WAYS[source], estimator="sketch", **options,
            ),
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        if result.rollouts is not None:
            write_rollouts(result.rollouts, sampled)
        write_report(result.report, path)
        print(f"{self.task:16} scores by {source}: {result.report.run.wall_seconds:.0f} s")
        return result.report


def trial_at(arm: Arm, full: int, lora: int) -> Trial:
    """The tuning trial of an arm at rates in half decades, of which it may need one only."""
    return Trial(
        seed=TUNING_SEED,
        full_rate=0.0 if arm.kind == "lora" else float(f"{10 ** (full / 2):.3g}"),
        lora_rate=0.0 if arm.kind == "full" else float(f"{10 ** (lora / 2):.3g}"),
    )


@torch.no_grad()
def measured(study: RewardStudy, model: Any, asked: Sequence[Row]) -> tuple[float, float]:
    """Mean reward of sampled answers, and the share of prompts whose likeliest answer is right."""
    model.eval()
    reward, words = reward_of(study.task), study.tokenizer

    def rewards(some: Sequence[Row], repeats: int, **options: Any) -> list[float]:
        given = words([row["prompt"] for row in some], return_tensors="pt", padding=True)
        found = model.generate(
            **given.to(study.base.device), max_new_tokens=LONGEST_ANSWER, use_cache=True,
            num_return_sequences=repeats, pad_token_id=words.pad_token_id, **options,
        )[:, given["input_ids"].shape[1] :]  # fmt: skip
        texts = words.batch_decode(found, skip_special_tokens=True)
        return reward(texts, [row["answer"] for row in some for _ in range(repeats)])

    sampled: list[float] = []
    likeliest: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for start in range(0, len(asked), 128):
            some = asked[start : start + 128]
            sampled += rewards(some, ANSWERS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            likeliest += rewards(some, 1, do_sample=False)
    return mean(sampled), mean(value == 1.0 for value in likeliest)


def warmed(
    base: LlamaForCausalLM, tokenizer: Any, rows: Sequence[Row], size: Size, folder: Path
) -> LlamaForCausalLM:
    """The model after the supervised steps, which are done once."""
    if (folder / "config.json").exists():
        return loaded(folder, base.device.type)[0]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=deepcopy(base).requires_grad_(True),
            args=SFTConfig(
                output_dir=scratch, max_steps=size.warm_steps, learning_rate=size.warm_rate,
                per_device_train_batch_size=size.warm_batch, bf16=False, seed=TUNING_SEED,
                use_cpu=base.device.type == "cpu", gradient_checkpointing=False, report_to=[],
                save_strategy="no", logging_strategy="no", disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loaded(folder, base.device.type)[0]


def opened(
    task: str, model: Path, *, device: str, size: Size, tasks: Path, folder: Path, clock: Clock
) -> RewardStudy:
    """The study of a task, with what is finished of it."""
    base, tokenizer = loaded(model, device)
    tokenizer.padding_side = "left"
    splits = read(task, tasks)
    count = size.warm_steps * size.warm_batch
    warm = splits["train"][:count]
    splits["rewarded"] = splits["train"][count:]
    settings = {"task": task, "rank": RANK, "device": device, **asdict(size)}
    # As the journal reads them again.
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    started = clock.timed(
        "warm", lambda: warmed(base, tokenizer, warm, size, folder / f"{task}-{device}")
    )
    return RewardStudy(
        task=task, size=size, base=started, tokenizer=tokenizer, clock=clock,
        rows={
            name: [{"prompt": row["prompt"], "answer": row["completion"].strip()} for row in rows]
            for name, rows in splits.items()
        },
        journal=Journal(folder / f"{task}.jsonl", settings),
        folder=folder / f"{task}-{device}" / "scores",
    )  # fmt: skip


def run_study(study: RewardStudy, only: Sequence[str] = ()) -> None:
    """All arms, or those with the given names; the ones that decide first."""
    planners = {
        source: Planner(report=study.report(source), rank=RANK) for source in (GRADIENTS, TRIALS)
    }
    plans = {source: planner.scored("hls") for source, planner in planners.items()}
    for source, plan in plans.items():
        if f"choice {source}" not in study.journal.arms:
            study.journal.add(f"choice {source}", {"modules": full_modules(plan)})
    planner = planners[TRIALS]
    count = len(full_modules(plans[TRIALS]))
    arms = [
        planner.full(), planner.lora(RANK), hybrid(f"hybrid hls of {TRIALS}", plans[TRIALS]),
        planner.matched(plans[TRIALS]), hybrid(f"hybrid hls of {GRADIENTS}", plans[GRADIENTS]),
        *(largest(planner, f"hybrid random of the largest {draw}", draw, count) for draw in (0, 1)),
    ]  # fmt: skip
    if "before" not in study.journal.arms:
        reward, right = measured(study, study.base, study.rows["test"][: study.size.test])
        study.journal.add("before", {"test_reward": reward, "accuracy": right})
        print(f"{study.task:16} before rewards: test {reward:.4f}, exact {100 * right:.1f} %")
    for arm in arms:
        if not only or arm.name in only:
            study.run(arm)


def smoke(model: Path, tasks: Path, device: str) -> None:
    """Two arms for a few steps; see the module."""
    with tempfile.TemporaryDirectory() as folder:
        study = opened(
            SMOKE_TASK, model, device=device, size=SMOKE, tasks=tasks, folder=Path(folder),
            clock=Clock(ends=float("inf")),
        )  # fmt: skip
        run_study(study, SMOKE_ARMS)
        trained = [entry for entry in study.journal.arms.values() if "arm" in entry]
        assert {entry["arm"] for entry in trained} == {*SMOKE_ARMS}
        for entry in trained:
            assert len(entry["rewards"]) == SMOKE.steps
            assert max(entry["rewards"]) > 0, "no completion was worth anything"
            assert min(entry["gradient_norms"]) > 0
            assert not entry["unmoved"], f"{entry['arm']} did not move {entry['unmoved']}"
            # Two factors of each of the 210 modules, or one weight in full.
            assert entry["tensors"] == 2 * 210 - len(entry["full"])
    print("Rewards come out, and exactly the planned tensors move.")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=tuple(SCORERS), action="append")
    parser.add_argument("--arm", action="append", default=[], help="name of an arm; else all")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--smoke", action="store_true", help="3 steps of two arms")
    parser.add_argument("--model", type=Path, default=MODELS / "smollm2")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of tasks and journals")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.smoke:
        smoke(options.model, options.folder, options.device)
        return
    clock = Clock(ends=time.monotonic() + 60 * options.minutes)
    try:
        for task in options.task or SCORERS:
            study = opened(
                task, options.model, device=options.device, size=WHOLE, tasks=options.folder,
                folder=options.folder / "rlvr", clock=clock,
            )  # fmt: skip
            run_study(study, options.arm)
            print(f"{task} is finished.", flush=True)
    except TimeOverError:
        print("Time is over; the same command goes on from here.", flush=True)


if __name__ == "__main__":
    main()
