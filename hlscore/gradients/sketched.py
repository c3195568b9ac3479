"""Sketch estimator: sums of thin products `Y = G Omega` instead of the gradients `G`.

For a linear map `G = delta^T X`, with X its input and delta the gradient at its output, so
`G Omega = delta^T (X Omega)` and `G^T Omega = X^T (delta Omega)`: two thin products instead of a
large one, and no gradient is formed. Omega multiplies the long side.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sums import HALVES, HalfSums
from hlscore.records import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketches:
    """Mean sketches of one module."""

    halves: tuple[torch.Tensor, torch.Tensor]  # `Y_A` and `Y_B`, float32 [E, m, k]
    exact: bool  # whether they are the gradients themselves


class _Product:
    """What the product of a module is made of."""

    def __init__(self, item: Candidate, tests: TestMatrices) -> None:
        # Whether the test matrix multiplies the input of the module, else its output's gradient:
        # the longer of the two, and of a square gradient the input.
        self.on_input = item.in_features >= item.out_features
        sides = (item.in_features, item.out_features)
        self.width, rows = sides if self.on_input else sides[::-1]
        columns = tests.columns(self.width)
        self.shape = (item.matrices, rows, columns)
        # Whether the product has the layout of the weight the other way round.
        self.turned = (item.storage == "in_out") == self.on_input
        # Otherwise it is the gradient itself.
        self.reduces = columns < self.width
        self.factor = tests.unit if self.reduces else 1.0
        # Whether the input can be multiplied as soon as it is seen.
        self.projects_input = self.on_input and self.reduces


class SketchGradients(HalfSums):
    """Accumulates sketches in float32, one sum per half and module."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
    ) -> None:
        super().__init__(candidates, tests, groups=groups)
        self._products = {item.module: _Product(item, tests) for item in candidates}
        self._sketched = frozenset(n for n, product in self._products.items() if product.reduces)
        # The input that was projected last, its version, the test matrix and the product. The
        # input is not kept alive: its graph holds a whole block.
        self._last: (
            tuple[weakref.ReferenceType[torch.Tensor], int, torch.Tensor, torch.Tensor] | None
        ) = None

    def begin_batch(self, half: int, scale: float) -> None:
        """Set the half that the next gradients belong to, and what they are multiplied with."""
        super().begin_batch(half, scale)
        self._last = None

    def keep(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Reduce the input of a module to what the backward pass needs of it.

        Modules that read one tensor, such as q, k and v, share its projection.

        Args:
            inputs: X, [..., in].

        Returns:
            `X T`, [..., k], where it can be formed at once, else X itself.
        """
        if not self._products[name].projects_input:
            return inputs
        test = self._test_matrix(name, inputs.device, _product_dtype(inputs))
        assert test is not None  # noqa: S101 - an identity has as many columns as rows
        last, version = self._last, inputs._version
        if last is None or last[0]() is not inputs or last[1] != version or last[2] is not test:
            last = self._last = (weakref.ref(inputs), version, test, inputs.to(test.dtype) @ test)
        return last[-1]

    def add_product(
        self, name: str, kept: torch.Tensor, delta: torch.Tensor, counts: Sequence[int] = ()
    ) -> None:
        """Add the product of a module's weight gradient, from its input and output gradient.

        Args:
            kept: What `keep` gave, on any device.
            delta: Gradient at the output, [..., out].
            counts: For fused experts, rows of each expert; rows come sorted by expert.
        """
        product = self._products[name]
        delta = delta.reshape(-1, delta.shape[-1])
        kept = kept.to(delta.device).reshape(-1, kept.shape[-1])
        left, right = (delta, kept) if product.on_input else (kept, delta)
        if not product.projects_input:
            test = self._test_matrix(name, delta.device, _product_dtype(right))
            right = right if test is None else right.to(test.dtype) @ test
        total = self._sum(name, delta.device)
        # Memory that runs out between two experts must not leave the first one added.
        part_sums = torch.zeros_like(total) if counts else total
        alpha, start = self._scale * product.factor, 0
        for index, count in enumerate(counts or (left.shape[0],)):
            rows = slice(start, start + count)
            if count:
                _add_outer(part_sums[index], left[rows], right[rows], alpha)
            start += count
        if counts:
            total.add_(part_sums)

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a weight gradient, of a module whose input and output cannot be observed."""
        product = self._products[name]
        dense = gradient.reshape(-1, *gradient.shape[-2:]).float()
        if product.turned:
            dense = dense.mT
        test = self._test_matrix(name, gradient.device, torch.float32)
        values = dense if test is None else dense @ test
        self._sum(name, gradient.device).add_(values, alpha=self._scale * product.factor)

    def _sum(self, name: str, device: torch.device) -> torch.Tensor:
        key = f"{HALVES[self._half]}:{name}"
        if key not in self.tensors:
            self.tensors[key] = torch.zeros(self._products[name].shape, device=device)
        elif self.tensors[key].device != device:  # read from a file
            self.tensors[key] = self.tensors[key].to(device)
        return self.tensors[key]

    def _test_matrix(
        self, name: str, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What a module is multiplied with, [n, k]; `None` for the identity."""
        product = self._products[name]
        return self._tests.of(product.width, device, dtype) if product.reduces else None

    def take(
        self, name: str, counts: Sequence[float]
    ) -> tuple[Sketches | None, torch.Tensor | None]:
        """Sketches of a module and those of all its groups; see `ExactGradients.take`."""
        halves, groups = self.both(name), self.take_groups(name)
        if halves is None:
            return None, groups
        means = (halves[0] / counts[0], halves[1] / counts[1])
        return Sketches(halves=means, exact=name not in self._sketched), groups


def _product_dtype(values: torch.Tensor) -> torch.dtype:
    """Dtype in which thin products of activations are formed."""
    # Tensor cores multiply 16 bit and sum in float32; on a CPU float32 is as fast and exacter.
    narrow = values.is_cuda and values.dtype in (torch.bfloat16, torch.float16)
    return values.dtype if narrow else torch.float32


def _add_outer(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """`total += scale * left^T right`, summed in float32."""
    if right.dtype == left.dtype and _product_dtype(left) == left.dtype != torch.float32:
        total.add_(torch.mm(left.T, right, out_dtype=torch.float32), alpha=scale)
    else:
        total.addmm_(left.T.float(), right.float(), alpha=scale)
