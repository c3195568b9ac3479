"""Completions of prompts by the model itself: batched, seeded, and cut where each one ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hlscore.errors import CaptureError
from hlscore.inputs.model import input_device
from hlscore.inputs.tokens import context_length, end_token_ids, pad_token_id
from hlscore.settings import ObjectiveSettings


@dataclass(slots=True, kw_only=True)
class Draft:
    """A completion that is being written."""

    prompt: Sequence[int]
    room: int  # most tokens that it may have
    ids: list[int] = field(default_factory=list)
    ended: bool = False  # whether it ended by itself, before that


class Writer:
    """Lets a model complete prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ObjectiveSettings,
        *,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._seed = seed
        self._ends = end_token_ids(tokenizer, model)
        self._pad = pad_token_id(tokenizer, model)
        self._context = context_length(model)
        self._largest = max(1, settings.generate_batch)

    def write(self, prompts: Sequence[Sequence[int]], label: str) -> list[Draft]:
        """Write one completion of each prompt.

        Args:
            prompts: Token ids; the same ones as often as they are to be completed.
            label: Tells these prompts from others: every label has draws of its own, so that a
                run that is resumed draws what it would have drawn.
        """
        drafts = [
            Draft(prompt=ids, room=room_for(len(ids), self._context, self._settings))
            for ids in prompts
        ]
        device = input_device(self._model)
        cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        waiting, turn = drafts, 0
        with torch.random.fork_rng(devices=cuda):
            while waiting:
                start = 0
                while start < len(waiting):
                    part = waiting[start : start + self._largest]
                    digest = hashlib.sha256(
                        f"{self._seed}:{label}:{turn}:{start}".encode()
                    ).digest()
                    torch.manual_seed(int.from_bytes(digest[:8]) >> 1)
                    if self._continue(part, device):
                        start += len(part)
                    else:
                        torch.cuda.empty_cache()
                        self._largest = len(part) // 2
                # Those beside a longer prompt had less room than their own in this turn.
                waiting = [item for item in waiting if not item.ended and len(item.ids) < item.room]
                turn += 1
        return drafts

    def _continue(self, drafts: Sequence[Draft], device: torch.device) -> bool:
        """Write all drafts on, if the memory suffices for them at a time."""
        rows = [[*draft.prompt, *draft.ids] for draft in drafts]
        width = max(map(len, rows))
        room = min(draft.room - len(draft.ids) for draft in drafts)
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        ends = torch.tensor(self._ends, dtype=torch.int64, device=device)
        stop = list(self._settings.stop)
        texts = StopStringCriteria(self._tokenizer, stop) if stop else None
        # Tokens of every completion that stand before those that are sampled now.
        written = min(len(draft.ids) for draft in drafts)
        lengths: list[int | None] = [None] * len(rows)

        def finished(so_far: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
            """Keep where completions end: padding may look like a token that was sampled."""
            ended = torch.isin(so_far[:, -1], ends.to(so_far.device))
            if texts is not None:
                ended = ended | texts(so_far[:, width - written :], scores, **options)
            for row, over in enumerate(ended.tolist()):
                if over and lengths[row] is None:
                    lengths[row] = so_far.shape[1] - width
            return ended

        try:
            with torch.no_grad():
                whole = self._model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=GenerationConfig(
                        max_new_tokens=room,
                        do_sample=True,
                        temperature=self._settings.temperature_value,
                        top_p=self._settings.top_p,
                        top_k=self._settings.top_k,
                        pad_token_id=self._pad,
                        eos_token_id=list(self._ends) or None,
                        use_cache=True,
                    ),
                    stopping_criteria=StoppingCriteriaList([finished]),
                )
        except torch.OutOfMemoryError as error:
            if len(drafts) > 1:
                return False
            raise CaptureError(
                "The device ran out of memory while the model wrote a single completion.",
                hint="Use a smaller --max-new-tokens, --dtype bfloat16 or --load-in 4bit, or "
                "sample with a serving engine and give --rollouts FILE.",
            ) from error
        except RuntimeError as error:
            if "probability tensor" not in str(error):  # torch.multinomial has no type of its own
                raise
            raise CaptureError(
                "The model gives NaN or infinity instead of probabilities.",
                hint="float16 overflows easily: use --dtype bfloat16 or float32."
                if self._model.dtype == torch.float16
                else "Check the checkpoint for broken weights, or use a higher --temperature.",
            ) from error
        sampled = whole[:, width:].tolist()
        for draft, row, length in zip(drafts, sampled, lengths, strict=True):
            draft.ids += row if length is None else row[:length]
            draft.ended = length is not None
        return True


def room_for(prompt_tokens: int, context: int | None, settings: ObjectiveSettings) -> int:
    """Most tokens that a completion may have; `context` is `None` for a model without a limit."""
    room = settings.max_new_tokens
    return room if context is None else min(room, context - prompt_tokens)


@contextmanager
def untouched(model: PreTrainedModel) -> Iterator[None]:
    """Write in inference mode, by our settings alone, and put everything back."""
    training = {name: module.training for name, module in model.named_modules()}
    own = model.generation_config
    # What a checkpoint suggests for sampling must not leak into what is not set here.
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        for name, module in model.named_modules():
            module.training = training[name]
