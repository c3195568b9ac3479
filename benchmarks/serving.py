"""How much memory do `merge`, `extract-lora` and `audit` take, beside the largest tensor?

    python benchmarks/serving.py [--width 2048] [--length 65536]

A Llama of one layer in bfloat16, in which one matrix is much larger than all else, with LoRA, DoRA
and full training of that matrix. Measured is the largest resident size of the process less what
it has after the imports, in units of that matrix as it is stored.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import parsed, write_result
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ADAPTERS = {
    "lora": {"target_modules": ["down_proj"]},
    "dora": {"target_modules": ["down_proj"], "use_dora": True},
    "full": {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"]},
}
COMMANDS = {"merge": "merged", "extract-lora": "plain", "audit": "audit.parquet"}

PROCESS = """
import sys
from pathlib import Path
import torch, transformers, safetensors.torch
from hlscore.cli.main import _run
from hlscore.inputs import trained
from hlscore.serving import merge_writers, plain_adapter
torch.linalg.eigh(torch.eye(64).double()), torch.linalg.qr(torch.randn(64, 64))
def peak():  # getrusage also counts what the parent had when it started this process
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
sys.argv = ["hlscore", *sys.argv[1:]]
code = _run()
print(peak() - before)
sys.exit(code)
"""


def build(width: int, length: int) -> LlamaForCausalLM:
    """A model whose `down_proj` is the largest tensor."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=length, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=300,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    """Measure every command on every adapter and write the result."""
    given = parsed(__doc__, width=2048, length=65536)
    largest_bytes = 2 * given.width * given.length
    found: dict[str, dict[str, float]] = {name: {} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(given.width, given.length).save_pretrained(folder / "base")
        for kind, settings in ADAPTERS.items():
            model = get_peft_model(build(given.width, given.length), LoraConfig(r=8, **settings))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1e-3 * torch.randn_like(parameter))
            model.save_pretrained(folder / kind)
            del model
            for command, out in COMMANDS.items():
                words = [command, folder / kind, "--model", folder / "base", "-o", folder / out]
                done = subprocess.run(  # noqa: S603
                    [sys.executable, "-c", PROCESS, *map(str, words), "--json", "--force"],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                kilobytes = int(done.stdout.splitlines()[-1])
                found[command][kind] = round(1024 * kilobytes / largest_bytes, 2)
                print(command, kind, found[command][kind])
    content = {"largest_tensor_bytes": largest_bytes, "peak_over_largest_tensor": found}
    print(write_result("serving", content))


if __name__ == "__main__":
    main()
