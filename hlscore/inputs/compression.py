"""Compressed text files of data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PACKED = (".gz", ".zst", ".bz2", ".xz")
_TEXTS = (".jsonl", ".json", ".csv")


def kind_of(path: Path) -> str:
    """Suffix that says how a file is read, whether it is packed or not."""
    packed = path.suffix.lower() in PACKED
    kind = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return "" if packed and kind not in _TEXTS else kind


def unpacked_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, packed or not."""
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    with path.open("rb") as raw:
        yield from compr[infer_compression(path.name)](raw, mode="rb")


def register_zstd() -> None:
    """Let `datasets` read .zst files without a package besides pyarrow."""
    import pyarrow as pa
    from fsspec.compression import compr, register_compression

    if "zstd" not in compr:
        register_compression(
            "zstd", lambda file, **_: pa.CompressedInputStream(file, "zstd"), ["zst"]
        )
