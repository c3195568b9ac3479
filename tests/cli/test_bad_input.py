"""Bad input gives one clear error, the right exit status, and leaves nothing behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from console import QUICK, UNFINISHED, Outcome, chat, hlscore, save_model, texts, write_rows
from families import FAMILIES
from newest import NEWEST
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
    """A folder of its own, with a good model and good data at hand."""

    folder: Path
    model: Path

    def __post_init__(self) -> None:
        self.out = self.folder / "out"
        self.data = self.rows(texts(6), "good.jsonl")

    def rows(self, rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
        """Write a data file."""
        return write_rows(self.folder / name, rows)

    def copy(self) -> Path:
        """A copy of the model, to be broken."""
        return Path(shutil.copytree(self.model, self.folder / "copy", dirs_exist_ok=True))

    def rank(self, *options: object, model: object = None) -> Outcome:
        """Rank the good model, or another one, with the good data."""
        given = ("--data", self.data, *QUICK, "--out", self.out, *options)
        return hlscore("rank", self.model if model is None else model, *given)

    def refuse(self, *options: object, code: int = 3, model: object = None) -> str:
        """Expect a run to end with one error and nothing written."""
        outcome = self.rank(*options, model=model)
        assert outcome.code == code, outcome
        assert not self.out.exists()
        return outcome.message

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def good_scores(good_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "a"
    done = hlscore("rank", good_model, "--samples", "8", "--bootstrap", "20", "--out", out)
    assert done.code == 0, done.err
    return out / "scores.parquet"


@pytest.fixture
def desk(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
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
        ("--exclude", "*", "--exclude leaves no candidate module"),
        ("--column", "prompt", "is not ROLE=COLUMN"),
        ("--column", "=text", "is not ROLE=COLUMN"),
        ("--column", "foo=text", "Use one of: text, messages, prompt, completion, chosen"),
        ("--split", "train[9", "--split is 'train[9'."),
        ("--split", "", "--split is ''."),
        ("--data-config", "main", "Remove --data-config."),
        ("--revision", "v1", "does not come from the hub"),
        ("--include *q_proj --exclude", "*q_proj", "--include and --exclude together leave no"),
        ("--dry-run --budget", "x", "is not a share"),
        ("--dtype", "nonsense", "--dtype is 'nonsense'."),
        ("--svd", "x", "Use one of: auto, full, randomized."),
        ("--rank", "abc", "--rank is 'abc'."),
        ("--top", "-1", "--top is '-1'."),
        pytest.param("--nonsense", "x", "No such option: --nonsense", marks=NEWEST),
        ("--value-power", "0.5", "--value-power is for plans with a rank for each module."),
        ("--ranks 2,4 --gated-pairs", "one", "--ranks and --gated-pairs are mutually exclusive."),
        ("--data builtin:new --split", "test", "builtin:new has one split."),
    ],
)
def test_option(desk: Desk, option: str, value: str, says: str) -> None:
    assert says in desk.refuse(*option.split(), value, code=2)


def test_rank_of_a_whole_matrix(desk: Desk) -> None:
    assert desk.rank("--rank", "48").code == 0
    rows = pq.ParquetFile(desk.out / "scores.parquet").read().to_pylist()
    scored = [row for row in rows if row["status"] == "scored"]
    assert {row["tail"] for row in scored} == {0.0}
    assert {row["hls"] for row in scored} == {0.0}
    assert all("LoRA of rank 48 spans the whole matrix" in row["reason"] for row in scored)


# Models


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    FAMILIES["llama"].build().save_pretrained(folder, max_shard_size="100KB")
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _filled(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _configured(**settings: object) -> Callable[[Path], object]:
    return _filled("config.json", json.dumps(settings).encode())


def _reconfigured(**settings: object) -> Callable[[Path], object]:
    return lambda folder: _configured(
        **json.loads((folder / "config.json").read_text()) | settings
    )(folder)


def _without(*patterns: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


REMOTE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
WEIGHTS = "model.safetensors"
BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (_without("config.json"), "has no config.json"),
    "no weights": (_without(WEIGHTS), "no .safetensors file beside config.json"),
    "pickle": (_to_pickle, "only has pickle weights (pytorch_model.bin)"),
    "corrupt weights": (_filled(WEIGHTS, b"x" * 1000), "model.safetensors' is corrupt"),
    "cut weights": (
        lambda folder: _filled(WEIGHTS, (folder / WEIGHTS).read_bytes()[:50_000])(folder),
        "corrupt or cut short",
    ),
    "empty weights": (_filled(WEIGHTS, b""), "corrupt or cut short"),
    "missing tensor": (
        lambda folder: _change(folder, lambda weights: weights.pop(UP_PROJ)),
        f"lack 1 tensor {UP_PROJ}",
    ),
    "wrong shape": (
        lambda folder: _change(
            folder, lambda weights: weights.update({UP_PROJ: torch.zeros(80, 10)})
        ),
        f"wrong shape for 1 tensor {UP_PROJ} ([80, 10] in the file, [80, 48] by config.json)",
    ),
    "missing shard": (_lose_shard, "which model.safetensors.index.json names"),
    "config is no JSON": (_filled("config.json", b"{no"), "not a valid JSON file"),
    "config is a list": (_filled("config.json", b"[]"), "The config.json of"),
    "no model type": (_configured(), "model_type"),
    "unknown model type": (_configured(model_type="martian"), "`martian`"),
    "wrong field": (_reconfigured(hidden_size="wide"), "Field 'hidden_size' expected int, got str"),
    "wrong heads": (_reconfigured(num_attention_heads=5), "not a multiple"),
    "bert": (_configured(model_type="bert"), "is an encoder model (bert)"),
    "t5": (_configured(model_type="t5"), "is an encoder-decoder model (t5)"),
    "clip": (_configured(model_type="clip"), "a clip model, which has no causal language model"),
    "remote code": (_configured(model_type="own", auto_map=REMOTE), "contains its own Python code"),
    "no tokenizer": (_without("tokenizer*", "*.jinja"), "has no tokenizer files"),
    "broken tokenizer": (_filled("tokenizer.json", b"{}"), "has no usable tokenizer: "),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_model(desk: Desk, name: str) -> None:
    break_it, says = BROKEN_MODELS[name]
    folder = desk.copy()
    break_it(folder)
    message = desk.refuse(model=folder)
    assert says in message
    assert str(folder) in message
    if name in ("no config", "bert", "remote code"):  # `modules` looks no further
        outcome = hlscore("modules", folder)
        assert outcome.code == 3
        assert says in outcome.message


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        *((name, 3, f"There is no model directory at '{name}'")
          for name in ("./none", "/none/at/all", "~/none-at-all", "a/b/c", __file__)),
        ("builtin:none", 3, "There is: builtin:tiny."),
        *((name, 2, "Give a hub id, a local directory, or builtin:tiny.") for name in ("", " ")),
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
    folder = save_model(desk.folder / "a", model=AutoModelForCausalLM.from_config(config))
    assert "LlamaForCausalLM has no candidate modules" in desk.refuse(model=folder)


def test_vocabulary_beyond_the_embedding(desk: Desk) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<x{number}>" for number in range(60)])
    folder = save_model(desk.folder / "wide", tokenizer=tokenizer)
    message = desk.refuse("--data", desk.rows([{"text": "<x59> a"}]), model=folder)
    assert "gives id 322 ('<x59>'), but the model's embedding has 300 rows" in message


def test_nan_loss_names_the_group(desk: Desk) -> None:
    folder = desk.copy()
    embedding = "model.embed_tokens.weight"
    _change(folder, lambda weights: weights[embedding][ord("z")].fill_(float("inf")))
    rows = [{"text": text} for text in ("abcz", "ab", "ac", "ad")]
    message = desk.refuse("--data", desk.rows(rows), "--groups", "2", model=folder)
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
    victim, calls = "model.layers.0.mlp.down_proj", []
    take = SketchGradients.add_product

    def poisoned(self: SketchGradients, name: str, kept: Any, delta: Any, *rest: Any) -> None:
        if name == victim:
            calls.append(name)
            if len(calls) == 2:
                delta = delta * float("nan")
        take(self, name, kept, delta, *rest)

    monkeypatch.setattr(SketchGradients, "add_product", poisoned)
    options = ("--estimator", "sketch", "--sketch-size", "8", "--rank", "2")
    message = desk.refuse(*options, "--save-every", "0")
    assert f"of '{victim}' in probe group 2 of half 1 holds NaN or infinity." in message


# Tokenizers and data


RAISES = {"chat_template": "{{ raise_exception('no such role') }}"}
UNMARKED = {"chat_template": CHAT_TEMPLATE_WITHOUT_GENERATION}
CHATS = [{"messages": chat(f"q{number}", "a")} for number in range(4)]
LENGTHS = [{"text": "a" * length} for length in (3, 5, 8, 13)]
EMPTY = [{"prompt": f"abc{number}", "completion": ""} for number in range(3)]
LOST = [{"prompt": f"{number} " * 20, "completion": "x"} for number in range(3)]
CUT = [{"text": f"{number} " * 200} for number in range(4)]
LONG = [{"prompt": "q" * length, "completion": "x"} for length in (5, 6, 7, 80)]


@pytest.mark.parametrize(("tokenizer", "rows", "options", "code", "says"), [
    ({"pad": True, "eos": False}, LENGTHS, "", 0, ""),
    ({"pad": False, "eos": False}, LENGTHS, "", 0, ""),
    ({"eos": False}, EMPTY, "", 3, "the completions are empty"),
    ({}, CHATS, "", 3, "has no chat template"),
    (RAISES, CHATS, "", 3, "Example 0 of"),
    (RAISES, CHATS, "", 3, "no such role"),
    (UNMARKED, CHATS, "--assistant-only-loss", 3, "does not mark the assistant's tokens"),
    (UNMARKED, CHATS, "", 0, "Every token of the conversations carries loss"),
    (None, CUT, "--max-length 32", 0, "4 examples cut at 32 tokens (--max-length)."),
    (None, LONG, "--max-length 32", 0, "1 example left out"),
    (None, LOST, "--max-length 32", 3,
     "3 of 3 are longer than 32 tokens and lost their completion"),
    (None, [{"messages": chat("q")}] * 3, "--assistant-only-loss", 3, "No token of example 0"),
    (None, texts(6), "--samples 1", 2, "--samples is 1, but scores compare examples."),
    (None, texts(1) * 4, "", 3, "has a single usable example, 4 times."),
    (None, texts(6), "--column text=nope", 3, "has no column 'nope'; it has: text."),
    (None, texts(6), "--split train[:0]", 3, "holds no examples"),
])  # fmt: skip
def test_examples(
    desk: Desk, tokenizer: Any, rows: list[dict[str, Any]], options: str, code: int, says: str
) -> None:
    model = desk.model
    if tokenizer is not None:
        model = save_model(desk.folder / "other", tokenizer=byte_tokenizer(**tokenizer))
    outcome = desk.rank("--data", desk.rows(rows), *options.split(), model=model)
    assert outcome.code == code, outcome
    assert says in (outcome.message if code else "".join(outcome.notes))


def _parquet(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _jsonl(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _messages(value: object) -> bytes:
    return _jsonl(*[{"messages": value}] * 3)


PARQUET = _parquet(text=["a", "b", "c"])
NO_EXAMPLES = "holds no examples"
NO_MESSAGES = "is not a list of messages"

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
    "notes.txt": (b"hello", "is a .txt file"),
    "suffixless": (b"hello", "is a suffixless file"),
    "null.jsonl": (_jsonl(*({"text": each} for each in ("a", None))), "Column 'text' of example 1"),
    "truth.jsonl": (_jsonl({"text": "a"}, {"text": True}), "is a boolean, not text"),
    "truths.csv": (b"text\ntrue\nfalse\n", "Column 'text' of example 0 in"),
    "list.jsonl": (_jsonl({"text": ["a"]}, {"text": ["b"]}), "is an array, not text"),
    "surrogate.jsonl": (_jsonl({"text": "a"}, {"text": "b \ud800"}), "half of a surrogate pair"),
    "gap.jsonl": (_jsonl({"text": "a"}, {"other": "b"}), "is null, not text"),
    "completion.jsonl": (
        _jsonl(*[{"prompt": "a", "completion": None}] * 3),
        "Column 'completion' of example 0",
    ),
    "mixed.jsonl": (
        _jsonl(*[{"prompt": "a", "completion": chat("x")}] * 3),
        "a prompt of text and a completion of messages",
    ),
    "string.jsonl": (_messages("hi"), NO_MESSAGES),
    "nobody.jsonl": (_messages([]), NO_MESSAGES),
    "silent.jsonl": (
        _messages([{"role": "user"}]),
        'Each message is an object with "role" and "content".',
    ),
    "sharegpt.jsonl": (_messages([{"from": "user", "text": "x"}]), NO_MESSAGES),
    "parts.jsonl": (_messages([{"role": "user", "content": [{"text": "x"}]}]), "Example 0 of"),
}


@pytest.mark.parametrize("name", BROKEN_DATA)
def test_data(desk: Desk, name: str) -> None:
    content, says = BROKEN_DATA[name]
    path = desk.folder / name
    path.write_bytes(content)
    message = desk.refuse("--data", path)
    assert says in message
    assert str(path) in message


def test_missing_data(desk: Desk) -> None:
    for name in ("none.jsonl", "./none", "/none/at/all", "~/none", "a/b/c"):
        assert f"There is no file or directory at '{name}'" in desk.refuse("--data", name)
    empty = desk.folder / "nothing"
    empty.mkdir()
    for name in ("readme.md", "notes.txt"):
        assert "holds no file to read" in desk.refuse("--data", empty)
        (empty / name).write_text("words")
    assert "holds no file to read" in desk.refuse("--data", empty)
    for split in ("train", "test"):
        desk.rows(texts(4), f"splits/{split}.jsonl")
    message = desk.refuse("--data", desk.folder / "splits", "--split", "validation")
    assert "has no split 'validation'" in message
    assert "it has: train, test" in message


# Where results go


def test_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, code, says in (
        (desk.data, 2, "is a file"),
        (desk.data / "out", 3, "cannot be written to"),
        (desk.folder / ("x" * 300), 3, "File name too long"),
    ):
        assert says in desk.refuse("--out", out, model="./none", code=code)

    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", refuse)
        assert "cannot be written to: Permission denied." in desk.refuse(model="./none")
    (desk.out / "plan.json").mkdir(parents=True)
    outcome = desk.rank("--force", model="./none")
    assert outcome.code == 2
    assert "is a directory" in outcome.message


def test_existing_results(desk: Desk) -> None:
    """They are refused before anything is loaded, here a model that does not exist."""
    desk.out.mkdir()
    (desk.out / "other.txt").write_text("mine")
    for name in ("scores.parquet", "plan.json"):
        (desk.out / name).write_text("mine")
        outcome = desk.rank(model="./none")
        assert outcome.code == 2
        assert f"{name}' already exists." in outcome.message
        assert "--force" in outcome.message
        assert desk.rank("--force", model="./none").code == 3
        assert desk.contents() == {"other.txt": b"mine", name: b"mine"}
        (desk.out / name).unlink()
    (desk.out / "plan.json").write_text("mine")
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
    desk: Desk, monkeypatch: pytest.MonkeyPatch, writer: str, error: Exception, code: int, says: str
) -> None:
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
def test_interrupt_signal(desk: Desk) -> None:
    command = [sys.executable, "-c", SLOW, "rank", str(desk.model), "--movement", "gradient",
               "--out", str(desk.out)]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "probing\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "error: Interrupted: nothing was written.\n"
    assert not desk.out.exists()


@pytest.mark.skipif(os.name == "nt", reason="closes a pipe")
@pytest.mark.parametrize("command", ["scores", "schema"])
def test_closed_pipe(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "hlscore", command]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_bug_is_reported_as_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture
def scores(good_scores: Path, desk: Desk) -> Path:
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
    outcome = hlscore("plan", scores, *options)
    assert (outcome.code, says in outcome.message) == (2, True), outcome
    assert [path.name for path in scores.parent.iterdir()] == [scores.name]


def test_plan_over_another_file(scores: Path) -> None:
    before, plan = scores.read_bytes(), scores.with_name("plan.json")
    outcome = hlscore("plan", scores, "--out", scores, "--force")
    assert outcome.code == 2
    assert "is the score report itself" in outcome.message
    assert scores.read_bytes() == before
    plan.write_text("mine")
    assert "already exists" in hlscore("plan", scores).message
    assert plan.read_text() == "mine"
    assert hlscore("plan", scores, "--force").code == 0
    assert json.loads(plan.read_text())["schema_version"] == 1


def _metadata(content: bytes) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({b"hlscore": content})


def _origin(**changes: object) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        origin = json.loads(table.schema.metadata[b"hlscore"])
        return _metadata(json.dumps(origin | changes).encode())(table)

    return changed


def _column(name: str, change: Callable[[list[Any]], list[Any]], kind: Any = None) -> Any:
    def changed(table: pa.Table) -> pa.Table:
        values = pa.array(change(table[name].to_pylist()), kind or table[name].type)
        return table.set_column(table.schema.get_field_index(name), name, values)

    return changed


def _all(name: str, value: object) -> Any:
    return _column(name, lambda values: [value] * len(values))


def _first_longer(lists: list[Any]) -> list[Any]:
    return [[*lists[0], 1.0], *lists[1:]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_metadata(b'{"schema'), "is damaged: Unterminated string"),
        (_metadata(b"\xff\xfe\x00"), "is damaged"),
        (_metadata(b"[]"), "has report schema None"),
        (_origin(schema_version=5), "has report schema 5; this hlscore reads 1."),
        (_origin(schema_version=True), "has report schema True"),
        (_origin(schema_version="x"), "has report schema x"),
        (_origin(run={}), "is damaged at 'run.hlscore_version': Field required."),
        (_origin(more=1), "is damaged at 'more'"),
        (lambda table: table.drop_columns(["hls"]), "column 'hls' is missing"),
        (lambda table: table.append_column("x", table["hls"]), "further columns"),
        (_column("hls", list, pa.float32()), "column 'hls' is float, not double"),
        (lambda table: table.slice(0, 0), "holds no candidate modules"),
        (_all("status", "odd"), "Row 0 of"),
        (_all("module", None), "'module': Input should be a valid string"),
        (_all("module", "a"), "'a' is listed twice"),
        (_all("taylor", float("nan")), "'taylor': Input should be a finite"),
        (_all("n_params", None), "'n_params': Input should be a valid integer"),
        (_all("n_params", 0), "a size is below 1"),
        (_all("hls_curve", [1.0]), "a curve and its ranks differ in length"),
        (_column("hls_replicates", _first_longer), "'hls_replicates' is not as long"),
    ],
)
def test_plan_from_damaged_scores(
    scores: Path, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    pq.write_table(change(pq.ParquetFile(scores).read()), scores)
    outcome = hlscore("plan", scores)
    assert outcome.code == 3
    assert says in outcome.message
    assert not scores.with_name("plan.json").exists()


def test_plan_from_a_file_with_a_hole(scores: Path) -> None:
    content = bytearray(scores.read_bytes())
    content[200:400] = bytes(200)
    scores.write_bytes(content)
    outcome = hlscore("plan", scores)
    assert outcome.code == 3
    assert str(scores) in outcome.message


@pytest.mark.parametrize("name", ["~nosuchuser/model", "a" * 300, "x\x00y"])
def test_names_that_are_no_paths(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hlscore("rank", name).code == 3
    assert hlscore("rank", "builtin:tiny", "--data", name, *QUICK).message
    assert not list(tmp_path.iterdir())
