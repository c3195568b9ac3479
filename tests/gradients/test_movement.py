"""What `--movement auto` means: trials where they are known to choose better, and can be run."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from problems import completions, run_report
from tokens import byte_tokenizer

from hlscore.errors import CaptureError, DataError, UsageError
from hlscore.flow.forecast import forecast
from hlscore.gradients.movement import with_movement
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.memory import fixed_weight
from hlscore.settings import CandidateSettings, RankSettings


def decided(*, quantized: bool = False, **given: Any) -> tuple[str, str, int]:
    """Movement, note and probe groups of a run on a small model."""
    model = given.pop("with_model", None) or FAMILIES["llama"].build()
    found = candidates_of(find_modules(model, CandidateSettings()))
    if quantized:
        found = tuple(replace(item, quantized=True) for item in found)
    settings, notes = with_movement(model, found, RankSettings.of({"model": "m", **given}))
    return settings.capture.movement, " ".join(notes), settings.capture.groups


def from_file(path: Path, values: torch.Tensor, *, writable: bool) -> torch.Tensor:
    """The same values in memory that is mapped from a file."""
    path.write_bytes(values.detach().numpy().tobytes())
    mapped = np.memmap(path, dtype="float32", mode="r+" if writable else "r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it cannot write there
        return torch.from_numpy(mapped).view(values.shape)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_weights_that_cannot_be_written_are_found(tmp_path: Path) -> None:
    own = torch.ones(5000)
    assert not fixed_weight({"own": own, "part": own[7:9]})
    for writable in (False, True):  # what is written there would be written to the file
        mapped = from_file(tmp_path / f"{writable}", own, writable=writable)
        assert fixed_weight({"own": own, "mapped": mapped}) == "mapped"


@pytest.mark.parametrize(
    ("given", "movement", "groups"),
    [
        ({}, "trial", 2),
        ({"score": "hls_share"}, "trial", 2),
        ({"trials": 6}, "trial", 3),
        ({"trials": 4, "ranks": (4, 8)}, "trial", 2),  # given, though it is the default
        ({"objective": "dpo", "trial_steps": 4}, "trial", 2),  # asked for by an option of trials
        ({"objective": "dpo", "movement": "trial"}, "trial", 2),
        ({"movement": "gradient"}, "gradient", 8),
        ({"objective": "dpo"}, "gradient", 8),
        ({"ranks": (4, 8)}, "gradient", 8),
        ({"score": "l1_adam"}, "gradient", 8),
        ({"score": "snr"}, "gradient", 8),
        ({"groups": 4}, "gradient", 4),
    ],
)
def test_auto_means_trials_where_they_choose_better(
    given: dict[str, Any], movement: str, groups: int
) -> None:
    assert decided(**given) == (movement, "", groups)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 4, "movement": "gradient"}, "--trials and --movement gradient are mutually"),
        ({"groups": 8, "movement": "trial"}, "--groups and --movement trial are mutually"),
        ({"groups": 3, "trial_steps": 8}, "--groups and --trial-steps are mutually"),
    ],
)
def test_options_of_trials_and_of_gradients_are_not_mixed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        decided(**given)


def test_what_keeps_auto_from_trials_is_said_and_trials_asked_for_are_refused(
    tmp_path: Path,
) -> None:
    offloaded = FAMILIES["llama"].build()
    with torch.device("meta"):
        offloaded.lm_head = torch.nn.Linear(2, 2)
    shared = FAMILIES["llama"].build()
    shared.share_memory()
    read_only = FAMILIES["llama"].build()
    for parameter in read_only.parameters():
        parameter.data = from_file(tmp_path / "weights", parameter, writable=False)
    fixed, moved = "weights lie in memory that is read-only or shared", "cannot be moved"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"quantized": True}, f"quantized weights {moved}", "quantized"),
        ({"load_in": "4bit"}, f"quantized weights {moved}", "quantized"),
        ({"shard": True}, f"sharded weights {moved}", "sharded"),
        ({"with_model": offloaded}, f"offloaded weights {moved}", "offloaded"),
        ({"with_model": read_only}, fixed, "read-only, or shared with a file"),
        ({"with_model": shared}, fixed, "read-only, or shared with a file"),
    ]
    for given, reason, refused in cases:
        movement, note, _ = decided(**given)
        assert movement == "gradient"
        assert note == f"Gradients were scored in place of trials: {reason}."
        with pytest.raises((UsageError, CaptureError), match=refused):
            decided(**given, movement="trial")


def test_auto_needs_memory_for_a_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlscore.gradients.movement.free_bytes", lambda _device: 1000)
    movement, note, _ = decided()
    assert movement == "gradient"
    assert "a copy of the weights takes" in note


def with_copies(of_one: int, others: int) -> ExampleSet:
    """Examples of which one comes many times; copies stay in one trial."""
    examples = completions(1 + others)
    return replace(examples, rows=(examples.rows[0],) * of_one + examples.rows[1:])


@pytest.mark.parametrize(
    ("examples", "few"),
    [
        (completions(31), "31 examples are too few, 32 would do"),
        (completions(32), ""),
        (with_copies(30, 3), "33 examples with a loss are too few for 4 trials of at least two"),
        (with_copies(30, 10), ""),
    ],
)
def test_the_run_and_its_dry_run_go_by_the_examples_of_each_trial(
    examples: ExampleSet, few: str
) -> None:
    model, given = FAMILIES["llama"].build(), {"model": "m", "trial_rate": 1e-3}
    usual = RankSettings.of({"model": "m", "bootstrap": 0})
    foreseen = forecast(model, byte_tokenizer(), examples, usual, torch.device("cpu"))
    report = run_report(model, examples, usual)
    for movement, notes, steps in (
        (foreseen.settings.capture.movement, foreseen.notes, foreseen.trial_steps),
        (report.run.movement, report.run.notes, report.run.trial_steps),
    ):
        said = [note for note in notes if "Gradients were scored in place of trials" in note]
        assert movement == ("gradient" if few else "trial")
        assert bool(said) == bool(few) == (steps is None)
        assert few in "".join(said)
    assert report.run.trial_steps == foreseen.trial_steps
    asked = RankSettings.of(given)
    if few and "with a loss" in few:
        with pytest.raises(DataError, match=few):
            run_report(model, examples, asked)
        with pytest.raises(DataError, match=few):
            forecast(model, byte_tokenizer(), examples, asked, torch.device("cpu"))
    else:
        assert run_report(model, examples, asked).run.movement == "trial"
