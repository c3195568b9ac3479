"""Bad input gives one clear error, the right exit status, and leaves nothing behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from console import QUICK, UNFINISHED, Outcome, chat, hlscore, save_model, texts, write_rows
from families import FAMILIES
from safetensors.torch import load_file, save_file
from tokens import CHAT_TEMPLATE_WITHOUT_GENERATION, EOS, byte_tokenizer
from transformers import AutoModelForCausalLM

from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.probe_run import ProbeRun
from hlscore.gradients.sketched import SketchGradients
from hlscore.probes.units import ProbeUnit, sequence, split_halves

UP_PROJ = "model.layers.1.mlp.up_proj.weight"


NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")


@dataclass
class Desk:
    """A folder of its own, with a good model and good data at hand.

    Attributes:
        folder: The folder.
        model: A saved model.
    """

    folder: Path
    model: Path

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.folder / "out"

    @property
    def data(self) -> Path:
        """Six examples of text."""
        return write_rows(self.folder / "good.jsonl", texts(6))

    def copy(self) -> Path:
        """A copy of the model, to be broken."""
        return Path(shutil.copytree(self.model, self.folder / "copy", dirs_exist_ok=True))

    def rank(self, *options: object, model: object = None) -> Outcome:
        """Ranks the good model, or another one, with the good data."""
        given = ("--data", self.data, *QUICK, "--out", self.out, *options)
        return hlscore("rank", model or self.model, *given)

    def refuse(self, *options: object, code: int = 3, model: object = None) -> str:
        """Expects a run to end with one error and nothing written."""
        outcome = self.rank(*options, model=model)
        assert outcome.code == code, outcome
        assert not self.out.exists()
        return outcome.message

    def contents(self) -> dict[str, bytes]:
        """The results that are there."""
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def good_scores(good_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores")
    done = hlscore("rank", good_model, "--samples", "8", "--bootstrap", "20", "--out", out / "a")
    assert done.code == 0, done.err
    return out / "a" / "scores.parquet"


@pytest.fixture
def desk(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk that has to be left tidy."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield Desk(tmp_path, good_model)
    assert not list(temporary.iterdir())
    assert not list(tmp_path.rglob(UNFINISHED))


# Options


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        *[("--budget", text, f"The budget '{text}' is not a share") for text in ("abc", "", "nan")],
        *[("--budget", text, f"'{text}' is not above 0") for text in ("-0.1", "0", "1.5", "0p")],
        ("--budget", "1e-9", "Use at least 0.0715"),
        ("--budget", "0.01", "A budget of 0.01 of 14 modules is less than one module"),
        ("--budget", "0.0001p", "less than the smallest of 14 modules (1,536)"),
        *[("--rank", text, f"--rank is {text}.") for text in ("0", "-3", "100000")],
        ("--alpha", "0", "--alpha is 0."),
        ("--samples", "-1", "--samples is -1."),
        ("--batch-size", "0", "--batch-size is 0."),
        ("--groups", "0", "--groups is 0."),
        ("--bootstrap", "-1", "--bootstrap is -1."),
        ("--seed", "-1", "--seed is -1."),
        ("--seed", str(2**63), "2**63 - 1"),
        ("--score", "nonsense", "Use one of: hls, tail, grad_norm"),
        ("--device", "cuda:99", "this machine has"),
        ("--device", "nonsense", "Use auto, cpu, mps, cuda or cuda:N."),
        ("--device", "cuda:x", "Use auto, cpu, mps, cuda or cuda:N."),
        pytest.param("--device", "mps", "no Apple GPU", marks=NO_MPS),
        ("--max-length", "1", "--max-length is 1."),
        ("--max-length", "257", "Use --max-length 256 or less."),
        ("--include", "nothing*", "--include 'nothing*' matches none of the candidate modules"),
        ("--exclude", "nothing*", "such as model.layers.0.self_attn.q_proj"),
        ("--exclude", "*", "together leave no candidate module"),
        ("--column", "prompt", "is not ROLE=COLUMN"),
        ("--column", "=text", "is not ROLE=COLUMN"),
        ("--column", "foo=text", "Use one of: text, messages, prompt, completion, chosen"),
        ("--split", "train[9", "--split is 'train[9'."),
        ("--split", "", "--split is ''."),
        ("--data-config", "main", "Remove --data-config."),
        ("--revision", "v1", "does not come from the hub"),
    ],
)
def test_option(desk: Desk, option: str, value: str, says: str) -> None:
    """A value that cannot be used is a usage error."""
    assert says in desk.refuse(option, value, code=2)


def test_options_together(desk: Desk) -> None:
    message = desk.refuse("--include", "*q_proj", "--exclude", "*q_proj", code=2)
    assert "--include and --exclude together leave no candidate module" in message
    assert "is not a share" in desk.refuse("--dry-run", "--budget", "x", code=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--dtype", "nonsense"),
        ("--svd", "x"),
        ("--rank", "abc"),
        ("--top", "0"),
        ("--nonsense", ""),
    ],
)
def test_option_refused_by_the_parser(desk: Desk, option: str, value: str) -> None:
    """What the parser refuses is one usage error too."""
    outcome = desk.rank(option, value)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert option in outcome.err.splitlines()[0]
    assert "  try: " in outcome.err


def test_rank_of_a_whole_matrix(desk: Desk) -> None:
    """LoRA that spans a matrix leaves no tail, and the report says why."""
    assert desk.rank("--rank", "48").code == 0
    rows = pq.ParquetFile(desk.out / "scores.parquet").read().to_pylist()
    scored = [row for row in rows if row["status"] == "scored"]
    assert {row["tail"] for row in scored} == {0.0}
    assert {row["hls"] for row in scored} == {0.0}
    assert all("LoRA of rank 48 spans the whole matrix" in row["reason"] for row in scored)


# Models


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrites the weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _narrow(weights: dict[str, torch.Tensor]) -> None:
    weights[UP_PROJ] = weights[UP_PROJ][:, :10].contiguous()


def _to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    FAMILIES["llama"].build().save_pretrained(folder, max_shard_size="100KB")
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _configure(**settings: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(settings))


def _reconfigure(**settings: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def _without(pattern: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def _lose_tokenizer(folder: Path) -> None:
    _without("tokenizer*")(folder)
    _without("*.jinja")(folder)


REMOTE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}

BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (_without("config.json"), "has no config.json"),
    "no weights": (_without("model.safetensors"), "no .safetensors file beside config.json"),
    "pickle": (_to_pickle, "only has pickle weights (pytorch_model.bin)"),
    "corrupt weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000),
        "model.safetensors' is corrupt",
    ),
    "cut weights": (lambda folder: _cut(folder / "model.safetensors"), "corrupt or cut short"),
    "empty weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "corrupt or cut short",
    ),
    "missing tensor": (
        lambda folder: _change(folder, lambda weights: weights.pop(UP_PROJ)),
        f"lack 1 tensor {UP_PROJ}",
    ),
    "wrong shape": (
        lambda folder: _change(folder, _narrow),
        f"wrong shape for 1 tensor {UP_PROJ} ([80, 10] in the file, [80, 48] by config.json)",
    ),
    "missing shard": (_lose_shard, "which model.safetensors.index.json names"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{no"),
        "not a valid JSON file",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "The config.json of",
    ),
    "no model type": (_configure(), "model_type"),
    "unknown model type": (_configure(model_type="martian"), "`martian`"),
    "wrong field": (
        _reconfigure(hidden_size="wide"),
        "Field 'hidden_size' expected int, got str",
    ),
    "wrong heads": (_reconfigure(num_attention_heads=5), "not a multiple"),
    "bert": (_configure(model_type="bert"), "is an encoder model (bert)"),
    "t5": (_configure(model_type="t5"), "is an encoder-decoder model (t5)"),
    "bart": (_configure(model_type="bart"), "is an encoder-decoder model (bart)"),
    "clip": (_configure(model_type="clip"), "a clip model, which has no causal language model"),
    "vit": (_configure(model_type="vit"), "a vit model, which has no causal language model"),
    "remote code": (_configure(model_type="own", auto_map=REMOTE), "contains its own Python code"),
    "no tokenizer": (_lose_tokenizer, "has no tokenizer files"),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "has no usable tokenizer: ",
    ),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_model(desk: Desk, name: str) -> None:
    """A model that cannot be used is named, with what is wrong about it."""
    break_it, says = BROKEN_MODELS[name]
    folder = desk.copy()
    break_it(folder)
    message = desk.refuse(model=folder)
    assert says in message
    assert str(folder) in message


@pytest.mark.parametrize("name", ["no config", "bert", "remote code"])
def test_modules_of_a_bad_model(desk: Desk, name: str) -> None:
    """`modules` refuses what `rank` refuses, as far as it looks."""
    break_it, says = BROKEN_MODELS[name]
    folder = desk.copy()
    break_it(folder)
    outcome = hlscore("modules", folder)
    assert outcome.code == 3
    assert says in outcome.message


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        *((name, 3, f"There is no model directory at '{name}'")
          for name in ("./none", "/none/at/all", "~/none-at-all", "a/b/c", __file__)),
        ("builtin:none", 3, "There is: builtin:tiny."),
        (" ", 2, "The model name is empty."),
    ],
)  # fmt: skip
def test_unknown_model(desk: Desk, name: str, code: int, says: str) -> None:
    assert says in desk.refuse(code=code, model=name)


def test_pickle_weights_when_allowed(desk: Desk) -> None:
    folder = desk.copy()
    _to_pickle(folder)
    assert desk.rank("--allow-pickle", model=folder).code == 0
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    shutil.rmtree(desk.out)
    assert "cannot be loaded" in desk.refuse("--allow-pickle", model=folder)


def test_no_candidates(desk: Desk) -> None:
    config = FAMILIES["llama"].config()
    config.num_hidden_layers = 0
    model = AutoModelForCausalLM.from_config(config)
    folder = save_model(desk.folder / "flat", model=model)
    assert "LlamaForCausalLM has no candidate modules" in desk.refuse(model=folder)


def test_vocabulary_beyond_the_embedding(desk: Desk) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<x{number}>" for number in range(60)])
    folder = save_model(desk.folder / "wide", tokenizer=tokenizer)
    data = write_rows(desk.folder / "wide.jsonl", [{"text": "<x59> a"}, {"text": "b"}])
    message = desk.refuse("--data", data, model=folder)
    assert "gives id 322 ('<x59>'), but the model's embedding has 300 rows" in message


def test_nan_loss_names_the_group(desk: Desk) -> None:
    """Only one example meets the infinite embedding; each is a group of its own."""
    folder = desk.copy()
    embedding = "model.embed_tokens.weight"
    _change(folder, lambda weights: weights[embedding][ord("z")].fill_(float("inf")))
    rows = [{"text": "abcz"}] + [{"text": f"a{letter}"} for letter in "bcd"]
    data = write_rows(desk.folder / "z.jsonl", rows)
    message = desk.refuse("--data", data, "--groups", "2", model=folder)
    encoded = [tuple(byte_tokenizer()(row["text"] + EOS)["input_ids"]) for row in rows]
    counted = [ProbeUnit((sequence(ids, 0),), len(ids) - 1) for ids in encoded]
    (place,) = [
        f"probe group {group} of half {half}"
        for half, groups in enumerate(split_halves(counted, groups=2, seed=0), start=1)
        for group, members in enumerate(groups, start=1)
        if counted[0] in members
    ]
    assert f"The loss in {place} is nan." in message


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_broken_gradient(desk: Desk, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A gradient that breaks though the loss is finite is named with its group."""
    victim, calls = "model.layers.0.mlp.down_proj", []
    take = GradientCapture._take_gradient

    def poisoned(self: GradientCapture, name: str, parameter: torch.Tensor) -> None:
        if name == victim and parameter.grad is not None:
            calls.append(name)
            if len(calls) == 2:
                parameter.grad[0, 0] = float(value)
        take(self, name, parameter)

    monkeypatch.setattr(GradientCapture, "_take_gradient", poisoned)
    message = desk.refuse()
    assert f"gradient of '{victim}' in probe group 2 of half 1 holds NaN or infinity." in message


def test_broken_sketch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that no gradient was formed of, also in a second pass."""
    victim, calls = "model.layers.0.mlp.down_proj", []
    take = SketchGradients.add_product

    def poisoned(self: SketchGradients, name: str, kept: Any, delta: Any, *rest: Any) -> None:
        if name == victim:
            calls.append(name)
            if len(calls) in broken:
                delta = delta * float("nan")
        take(self, name, kept, delta, *rest)

    monkeypatch.setattr(SketchGradients, "add_product", poisoned)
    options = ("--estimator", "sketch", "--sketch-size", "8", "--passes", "3", "--rank", "2")
    broken: set[int] = set()
    assert desk.rank(*options).code == 0
    of_one_pass = len(calls) // 3
    shutil.rmtree(desk.out)
    for number in (2, of_one_pass + 2):
        calls.clear()
        broken = {number}
        message = desk.refuse(*options, "--save-every", "0")
        assert f"of '{victim}' in probe group 2 of half 1 holds NaN or infinity." in message


# Tokenizers and data


@pytest.mark.parametrize("pad", [True, False])
def test_tokenizer_without_special_tokens(desk: Desk, pad: bool) -> None:
    """Neither padding nor an end of sequence is needed."""
    folder = save_model(desk.folder / "bare", tokenizer=byte_tokenizer(pad=pad, eos=False))
    rows = [{"text": "a" * length} for length in (3, 5, 8, 13)]
    data = write_rows(desk.folder / "lengths.jsonl", rows)
    assert desk.rank("--data", data, model=folder).code == 0


RAISES = "{{ raise_exception('no such role') }}"


@pytest.mark.parametrize(
    ("template", "says"),
    [(None, "has no chat template"), (RAISES, "Example 0 of"), (RAISES, "no such role")],
)
def test_chat_template(desk: Desk, template: str | None, says: str) -> None:
    tokenizer = byte_tokenizer(chat_template=template) if template else byte_tokenizer()
    folder = save_model(desk.folder / "picky", tokenizer=tokenizer)
    data = write_rows(desk.folder / "chat.jsonl", [{"messages": chat("q", "a")}] * 3)
    assert says in desk.refuse("--data", data, model=folder)


def test_chat_template_without_marks(desk: Desk) -> None:
    """Every token counts, a note says so, and the assistant's alone cannot be had."""
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE_WITHOUT_GENERATION)
    folder = save_model(desk.folder / "plain", tokenizer=tokenizer)
    rows = [{"messages": chat(f"q{number}", "a")} for number in range(4)]
    data = write_rows(desk.folder / "chat.jsonl", rows)
    message = desk.refuse("--data", data, "--assistant-only-loss", model=folder)
    assert "does not mark the assistant's tokens" in message
    outcome = desk.rank("--data", data, model=folder)
    assert outcome.code == 0
    assert "Every token of the conversations carries loss" in outcome.notes[0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"text": f"{number} " * 200} for number in range(4)],
            "4 examples were cut at 32 tokens (--max-length).",
        ),
        (
            [{"prompt": "q" * length, "completion": "x"} for length in (5, 6, 7, 80)],
            "1 examples were left out",
        ),
    ],
)
def test_long_examples(desk: Desk, rows: list[dict[str, str]], says: str) -> None:
    """What is longer than the limit is cut, what has no loss is left out, and a note says so."""
    data = write_rows(desk.folder / "long.jsonl", rows)
    outcome = desk.rank("--data", data, "--max-length", "32")
    assert outcome.code == 0
    assert any(says in note for note in outcome.notes)


LOST = [{"prompt": f"{number} " * 20, "completion": "x"} for number in range(3)]


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (
            LOST,
            "--max-length 32",
            "3 of 3 are longer than 32 tokens and lost their completion",
        ),
        (
            [{"messages": chat(f"q{number}")} for number in range(3)],
            "--assistant-only-loss",
            "No token of example 0",
        ),
        (texts(6), "--samples 1", "has a single usable example."),
        (texts(1) * 4, "", "has a single usable example, 4 times."),
        (texts(6), "--column text=nope", "has no column 'nope'; it has: text."),
        (texts(6), "--split train[:0]", "holds no examples"),
    ],
)
def test_examples_without_use(
    desk: Desk, rows: list[dict[str, Any]], options: str, says: str
) -> None:
    data = write_rows(desk.folder / "rows.jsonl", rows)
    assert says in desk.refuse("--data", data, *options.split())


def test_empty_completions(desk: Desk) -> None:
    folder = save_model(desk.folder / "endless", tokenizer=byte_tokenizer(eos=False))
    rows = [{"prompt": f"abc{number}", "completion": ""} for number in range(3)]
    data = write_rows(desk.folder / "empty.jsonl", rows)
    assert "the completions are empty" in desk.refuse("--data", data, model=folder)


def _parquet(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _jsonl(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


PARQUET = _parquet(text=["a", "b", "c"])
NO_EXAMPLES = "holds no examples"

BROKEN_DATA: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", NO_EXAMPLES),
    "empty.csv": (b"", NO_EXAMPLES),
    "blank.jsonl": (b"\n\n", NO_EXAMPLES),
    "header.csv": (b"text\n", NO_EXAMPLES),
    "list.json": (b"[]", NO_EXAMPLES),
    "zero.parquet": (_parquet(text=[]), NO_EXAMPLES),
    "columns.jsonl": (_jsonl(*[{"b": 1, "a": 2}] * 3), "it has: a, b."),
    "columns.csv": (b"a,b\n1,2\n3,4\n", "it has: a, b."),
    "half.jsonl": (_jsonl(*[{"prompt": "a"}] * 3), "it has: prompt."),
    "malformed.jsonl": (b'{"text": "a"}\n{"text": \n', "cannot be read at line 2"),
    "words.jsonl": (b'{"text": "a"}\n\nwords\n', "cannot be read at line 3"),
    "scalars.jsonl": (b"1\n2\n", "cannot be read at line 1"),
    "cut.parquet": (PARQUET[: len(PARQUET) // 2], "cannot be read"),
    "junk.parquet": (b"junk" * 10, "cannot be read"),
    "junk.arrow": (b"junk" * 10, "cannot be read"),
    "notes.txt": (b"hello", "is a .txt file"),
    "suffixless": (b"hello", "is a suffixless file"),
    "null.jsonl": (
        _jsonl({"text": "a"}, {"text": None}, {"text": "b"}),
        "Column 'text' of example 1 in",
    ),
    "truth.jsonl": (_jsonl({"text": "a"}, {"text": True}), "is bool, not text"),
    "truths.csv": (b"text\ntrue\nfalse\n", "Column 'text' of example 0 in"),
    "list.jsonl": (_jsonl({"text": ["a"]}, {"text": ["b"]}), "is list, not text"),
    "gap.jsonl": (_jsonl({"text": "a"}, {"other": "b"}), "is NoneType, not text"),
    "completion.jsonl": (
        _jsonl(*[{"prompt": "a", "completion": None}] * 3),
        "Column 'completion' of example 0",
    ),
    "mixed.jsonl": (
        _jsonl(*[{"prompt": "a", "completion": chat("x")}] * 3),
        "a prompt of text and a completion of messages",
    ),
    "string.jsonl": (_jsonl(*[{"messages": "hi"}] * 3), "is not a list of messages"),
    "nobody.jsonl": (_jsonl(*[{"messages": []}] * 3), "is not a list of messages"),
    "words.json": (_jsonl(*[{"messages": ["hi"]}] * 3), "is not a list of messages"),
    "silent.jsonl": (
        _jsonl(*[{"messages": [{"role": "user"}]}] * 3),
        'Each message is an object with "role" and "content".',
    ),
    "sharegpt.jsonl": (
        _jsonl(*[{"messages": [{"from": "user", "text": "x"}]}] * 3),
        "is not a list of messages",
    ),
    "parts.jsonl": (
        _jsonl(*[{"messages": [{"role": "user", "content": [{"text": "x"}]}]}] * 3),
        "Example 0 of",
    ),
}


@pytest.mark.parametrize("name", BROKEN_DATA)
def test_data(desk: Desk, name: str) -> None:
    """A data file that cannot be used is named, with what is wrong about it."""
    content, says = BROKEN_DATA[name]
    path = desk.folder / name
    path.write_bytes(content)
    message = desk.refuse("--data", path)
    assert says in message
    assert str(path) in message


@pytest.mark.parametrize("name", [None, "readme.md", "notes.txt"])
def test_directory_without_data(desk: Desk, name: str | None) -> None:
    folder = desk.folder / "nothing"
    folder.mkdir()
    if name is not None:
        (folder / name).write_text("words")
    assert "holds no file to read" in desk.refuse("--data", folder)


def test_missing_data(desk: Desk) -> None:
    for name in ("none.jsonl", "./none", "/none/at/all", "~/none", "a/b/c"):
        assert f"There is no file or directory at '{name}'" in desk.refuse("--data", name)
    for split in ("train", "test"):
        write_rows(desk.folder / "splits" / f"{split}.jsonl", texts(4))
    message = desk.refuse("--data", desk.folder / "splits", "--split", "validation")
    assert "has no split 'validation'" in message
    assert "it has: train, test" in message


# Where results go


def test_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that cannot take the results is refused before anything is loaded."""
    bad = {"is a file": desk.data, "cannot be written to": desk.data / "out",
           "File name too long": desk.folder / ("x" * 300)}  # fmt: skip
    for says, out in bad.items():
        assert says in desk.refuse(
            "--out", out, model="./none", code=2 if says == "is a file" else 3
        )

    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", refuse)
        assert "cannot be written to: Permission denied." in desk.refuse(model="./none")
    (desk.out / "plan.json").mkdir(parents=True)
    outcome = desk.rank("--force", model="./none")
    assert outcome.code == 2
    assert "is a directory" in outcome.message


@pytest.mark.parametrize("name", ["scores.parquet", "plan.json"])
def test_existing_results(desk: Desk, name: str) -> None:
    """They are refused before anything is loaded, here a model that does not exist."""
    desk.out.mkdir()
    (desk.out / name).write_text("mine")
    outcome = desk.rank(model="./none")
    assert outcome.code == 2
    assert f"{name}' already exists." in outcome.message
    assert "--force" in outcome.message
    assert desk.rank("--force", model="./none").code == 3
    assert desk.contents() == {name: b"mine"}


def test_force(desk: Desk) -> None:
    desk.out.mkdir()
    for name in ("scores.parquet", "plan.json", "other.txt"):
        (desk.out / name).write_text("mine")
    assert desk.rank("--force").code == 0
    assert desk.contents()["other.txt"] == b"mine"
    assert json.loads(desk.contents()["plan.json"])["schema_version"] == 1


@pytest.mark.parametrize(
    ("writer", "error", "code", "says"),
    [
        ("write_report", OSError(errno.ENOSPC, "No space left on device"), 3, "No space left"),
        ("write_plan", KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_end_while_writing(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    """A full disk or Ctrl-C while results are written keeps the old ones whole."""

    def fail(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(f"hlscore.flow.result.{writer}", fail)
    assert says in desk.refuse(code=code)
    desk.out.mkdir()
    for name in ("scores.parquet", "plan.json"):
        (desk.out / name).write_text("mine")
    outcome = desk.rank("--force")
    assert outcome.code == code
    assert says in outcome.message
    assert desk.contents() == {"scores.parquet": b"mine", "plan.json": b"mine"}


# Ctrl-C and closed pipes


SLOW = """
import time
from hlscore.gradients.probe_run import ProbeRun

def wait(*arguments, **options):
    print("probing", flush=True)
    time.sleep(60)

ProbeRun._run_part = wait
from hlscore.cli.main import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_signal(desk: Desk, number: signal.Signals) -> None:
    """A real Ctrl-C, and what a job scheduler sends, end the process with 130 and one line."""
    command = [
        sys.executable, "-c", SLOW, "rank", str(desk.model), "--movement", "gradient", "--out",
        str(desk.out),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "probing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "error: Interrupted: nothing was written.\n"
    assert not desk.out.exists()


@pytest.mark.skipif(os.name == "nt", reason="closes a pipe")
@pytest.mark.parametrize("command", ["scores", "schema"])
def test_closed_pipe(command: str) -> None:
    """A reader that leaves early, such as `head`, is no failure."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "hlscore", command],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_bug_is_reported_as_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody thought of is one line too; the variable brings the traceback."""

    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(ProbeRun, "_run_part", fail)
    outcome = desk.rank()
    assert outcome.code == 3
    assert "Unexpected ZeroDivisionError: oh" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("HLSCORE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        desk.rank()


# Plans from stored scores


def _plan(scores: Path, *options: object) -> Outcome:
    return hlscore("plan", scores, *options)


@pytest.fixture
def scores(good_scores: Path, desk: Desk) -> Path:
    """A copy of good scores, alone in a folder."""
    folder = desk.folder / "report"
    folder.mkdir()
    return Path(shutil.copy(good_scores, folder))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--budget", "x"), "is not a share"),
        (("--budget", "0.01"), "less than one module"),
        (("--rank", "5"), "Use one of 1, 2, 4, 8, 16"),
        (("--rank", "0"), "--rank is 0."),
        (("--score", "nonsense"), "There is no score 'nonsense'"),
        (("--out", "plan.yaml"), "a plan is JSON"),
    ],
)
def test_plan_option(scores: Path, options: tuple[str, str], says: str) -> None:
    outcome = _plan(scores, *options)
    assert outcome.code == 2
    assert says in outcome.message
    assert [path.name for path in scores.parent.iterdir()] == [scores.name]


def test_plan_over_another_file(scores: Path) -> None:
    """Not even --force may put a plan in the place of the scores it is made from."""
    before, plan = scores.read_bytes(), scores.with_name("plan.json")
    outcome = _plan(scores, "--out", scores, "--force")
    assert outcome.code == 2
    assert "is the score report itself" in outcome.message
    assert scores.read_bytes() == before
    plan.write_text("mine")
    assert "already exists" in _plan(scores).message
    assert plan.read_text() == "mine"
    assert _plan(scores, "--force").code == 0
    assert json.loads(plan.read_text())["schema_version"] == 1


def test_plan_from_a_damaged_file(scores: Path) -> None:
    content = bytearray(scores.read_bytes())
    content[200:400] = bytes(200)
    scores.write_bytes(content)
    outcome = _plan(scores)
    assert outcome.code == 3
    assert str(scores) in outcome.message


def _origin(**changes: object) -> Callable[[dict[str, Any]], bytes]:
    return lambda origin: json.dumps(origin | changes).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: b'{"schema', "is damaged: Unterminated string"),
        (lambda _: b"\xff\xfe\x00", "is damaged"),
        (lambda _: b"[]", "has report schema None"),
        (_origin(schema_version=5), "has report schema 5; this hlscore reads 1."),
        (_origin(schema_version=True), "has report schema True"),
        (_origin(schema_version="x"), "has report schema x"),
        (_origin(run={}), "is damaged at 'run.hlscore_version': Field required."),
        (_origin(more=1), "is damaged at 'more'"),
    ],
)
def test_plan_from_damaged_metadata(
    scores: Path, change: Callable[[dict[str, Any]], bytes], says: str
) -> None:
    table = pq.ParquetFile(scores).read()
    origin = json.loads(table.schema.metadata[b"hlscore"])
    pq.write_table(table.replace_schema_metadata({b"hlscore": change(origin)}), scores)
    outcome = _plan(scores)
    assert outcome.code == 3
    assert says in outcome.message


def _column(
    name: str, values: Callable[[pa.ChunkedArray], object]
) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, values(table[name]))

    return change


def _same(value: object) -> Callable[[pa.ChunkedArray], object]:
    return lambda column: pa.array([value] * len(column), column.type)


def _first_longer(column: pa.ChunkedArray) -> object:
    lists = column.to_pylist()
    return pa.array([[*lists[0], 1.0], *lists[1:]], column.type)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop_columns(["hls"]), "column 'hls' is missing"),
        (lambda table: table.append_column("x", table["hls"]), "further columns"),
        (
            _column("hls", lambda column: column.cast(pa.float32())),
            "column 'hls' is float, not double",
        ),
        (lambda table: table.slice(0, 0), "holds no candidate modules"),
        (_column("status", _same("odd")), "Row 0 of"),
        (_column("module", _same(None)), "'module': Input should be a valid string"),
        (_column("module", _same("a")), "'a' is listed twice"),
        (_column("n_params", _same(None)), "'n_params': Input should be a valid integer"),
        (_column("n_params", _same(0)), "a size is below 1"),
        (_column("hls_curve", _same([1.0])), "a curve and its ranks differ in length"),
        (_column("hls_replicates", _first_longer), "'hls_replicates' is not as long"),
    ],
)
def test_plan_from_damaged_columns(
    scores: Path, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    pq.write_table(change(pq.ParquetFile(scores).read()), scores)
    outcome = _plan(scores)
    assert outcome.code == 3
    assert says in outcome.message
    assert not scores.with_name("plan.json").exists()


@pytest.mark.parametrize("name", ["~nosuchuser/model", "a" * 300, "x\x00y"])
def test_names_that_are_no_paths(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hlscore("rank", name).code == 3
    assert hlscore("rank", "builtin:tiny", "--data", name, *QUICK).message
    assert not list(tmp_path.iterdir())
