"""Random sketches of matrices: pure functions of tensors.

A matrix is oriented with its short side first, [..., m, n] with m <= n, and sketched on the
long side: `Y = X Omega / sqrt(k)`, [..., m, k]. Entries of `Omega` are +-1, which 16-bit types
hold exactly; as `E[Omega Omega^T] = k I`, inner products of sketches estimate those of the
matrices. Matrices of one width share one `Omega`: what several modules read is projected once,
and any run or process can draw it again from seed, width and size.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch

LEAST_SAVING = 4
_ROWS_PER_COLUMN = 2


def short_first(matrices: torch.Tensor) -> torch.Tensor:
    """A view of matrices [..., p, q] with the short side first."""
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def with_float64(values: torch.Tensor) -> torch.Tensor:
    """The same values on a device with float64, which Apple GPUs lack."""
    return values.cpu() if values.device.type == "mps" else values


def seeded_generator(text: str) -> torch.Generator:
    """A generator on the host that draws the same for one text in every run and process."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


class TestMatrices:
    """The Rademacher test matrices of a run, each drawn when it is first asked for."""

    __test__ = False  # no test case, whatever pytest makes of the name

    def __init__(self, *, size: int, seed: int) -> None:
        self.size = size
        # What products with a test matrix are multiplied with, so that they keep their energy.
        self.unit = 1 / math.sqrt(size)
        self._seed = seed
        self._drawn: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}

    def columns(self, width: int) -> int:
        """Columns of a sketch of matrices with this long side: k, or n where they stay whole.

        A sketch that is not at least four times smaller is not worth its noise.
        """
        return width if width <= LEAST_SAVING * self.size else self.size

    def of(self, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The test matrix of a width, +-1 [n, k]; the same on every device, run and process."""
        key = (width, device, dtype)
        if key not in self._drawn:
            generator = seeded_generator(f"{self._seed}:{width}:{self.size}")
            signs = torch.randint(0, 2, (width, self.size), generator=generator, dtype=torch.int8)
            self._drawn[key] = (signs * 2 - 1).to(device=device, dtype=dtype)
        return self._drawn[key]

    def compress(self, matrices: torch.Tensor) -> torch.Tensor:
        """Sketch matrices [E, p, q] to k columns, also those that are kept whole elsewhere.

        Returns:
            float32 [E, min(p, q), k], or the matrices where they have no more columns than that.
        """
        oriented = short_first(matrices).float()
        width = oriented.shape[-1]
        if width <= self.size:
            return oriented
        return (oriented @ self.of(width, matrices.device, torch.float32)) * self.unit


def folded_rows(rows: int, columns: int) -> int:
    """Rows of a folded sketch: no more than twice its columns."""
    return min(rows, _ROWS_PER_COLUMN * columns)


def fold_rows(sketches: torch.Tensor) -> torch.Tensor:
    """Add the m rows of sketches [E, m, k] up, with random signs, into `folded_rows`.

    Products `X^T Y` of such count sketches estimate those of the whole ones (Clarkson and Woodruff,
    arXiv 1207.6365).
    """
    height, columns = sketches.shape[-2:]
    rows = folded_rows(height, columns)
    if height <= rows:
        return sketches
    places, signs = _fold(height, rows, sketches.device)
    folded = sketches.new_zeros(*sketches.shape[:-2], rows, columns)
    return folded.index_add_(-2, places, sketches * signs[:, None])


@lru_cache(maxsize=64)
def _fold(height: int, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each row goes, int64 [m], and its sign, float32 [m]."""
    generator = torch.Generator().manual_seed(height)
    places = torch.randint(0, rows, (height,), generator=generator)
    signs = torch.randint(0, 2, (height,), generator=generator) * 2.0 - 1
    return places.to(device), signs.to(device)
