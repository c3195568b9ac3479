"""What packed weights take in memory."""

from __future__ import annotations


def packed_bytes(params: int, rows: int, bits: int) -> int:
    """Bytes of linear weights as bitsandbytes packs them, with their scales.

    Args:
        bits: 4 (two levels of scales) or 8.

    Returns:
        The bytes; with 4 bits, up to 8 more per layer whose blocks do not fill their groups.
    """
    if bits == 8:
        return params + 4 * rows  # one float32 scale per output row
    # One 8-bit scale per 64 weights, one float32 scale per 256 of those.
    return round(params * (1 / 2 + 1 / 64 + 4 / (64 * 256)))
