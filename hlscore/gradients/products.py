"""Sums of `G T` over the probes, for given test matrices T, without forming a gradient `G`.

For a linear map `G = delta^T X`, with X its input and delta the gradient at its output, so
`G T = delta^T (X T)` and `G^T T = X^T (delta T)`: two thin products instead of a large one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.half_sums import HALVES, HalfSums
from hlscore.records import Candidate

_HALF_PRECISION = (torch.bfloat16, torch.float16)

TestOf = Callable[[str, torch.device, torch.dtype], torch.Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a module's product is made of.

    Attributes:
        item: The module.
        on_input: Whether the test matrix multiplies the input of the module, else the gradient
            at its output.
        columns: Columns of the product; as many as the test matrix has rows for the identity.
        shared: Whether all matrices of the module are multiplied with the same test matrix.
        factor: What the product is multiplied with.
    """

    item: Candidate
    on_input: bool
    columns: int
    shared: bool
    factor: float

    @property
    def width(self) -> int:
        """Rows of the test matrix."""
        return self.item.in_features if self.on_input else self.item.out_features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the product, [E, rows, columns]."""
        rows = self.item.out_features if self.on_input else self.item.in_features
        return self.item.matrices, rows, self.columns

    @property
    def projects_input(self) -> bool:
        """Whether the input can be multiplied as soon as it is seen."""
        return self.on_input and self.shared and self.columns < self.width


def product_of(
    item: Candidate, columns: int, *, long_side: bool, shared: bool, factor: float
) -> Product:
    """A product on the long or the short side; of a square gradient, the input is the long one."""
    on_input = (item.in_features >= item.out_features) == long_side
    return Product(item=item, on_input=on_input, columns=columns, shared=shared, factor=factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projected:
    """The input that was projected last; it is not kept alive, its graph holds a whole block."""

    source: weakref.ReferenceType[torch.Tensor]
    version: int
    test: torch.Tensor
    values: torch.Tensor

    def is_of(self, inputs: torch.Tensor, test: torch.Tensor) -> bool:
        unchanged = self.source() is inputs and self.version == inputs._version
        return unchanged and self.test is test


class ProductSums(HalfSums):
    """Accumulates products in float32, one sum per half and module.

    Args:
        products: What is multiplied, by module name.
        test_of: Gives the test matrix of a module on a device in a dtype: [n, k], or [E, n, k]
            where it is not shared, or `None` for the identity.
    """

    def __init__(self, products: Mapping[str, Product], test_of: TestOf) -> None:
        super().__init__(products)
        self.products = products
        self._test_of = test_of
        self._last: _Projected | None = None

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
            `X T`, [..., k], where that can be had already, else X itself.
        """
        if not self.products[name].projects_input:
            return inputs
        test = self._test_of(name, inputs.device, _product_dtype(inputs))
        assert test is not None  # noqa: S101 - an identity has as many columns as rows
        last = self._last
        if last is None or not last.is_of(inputs, test):
            last = self._last = _Projected(
                source=weakref.ref(inputs),
                version=inputs._version,
                test=test,
                values=inputs.to(test.dtype) @ test,
            )
        return last.values

    def add_product(
        self, name: str, kept: torch.Tensor, delta: torch.Tensor, counts: Sequence[int] = ()
    ) -> None:
        """Add the product of a module's weight gradient, from its input and output gradient.

        Args:
            kept: What `keep` gave, on any device.
            delta: Gradient at the output, [..., out].
            counts: For fused experts, rows of each expert; rows come sorted by expert.
        """
        product = self.products[name]
        delta = delta.reshape(-1, delta.shape[-1])
        kept = kept.to(delta.device).reshape(-1, kept.shape[-1])
        left, right = (delta, kept) if product.on_input else (kept, delta)
        test = None
        if not product.projects_input:
            test = self._test_of(name, delta.device, _product_dtype(right))
        if test is not None and product.shared:
            right, test = right.to(test.dtype) @ test, None
        total = self._sum(name, delta.device)
        # Memory that runs out between two experts must not leave the first one added.
        part_sums = torch.zeros_like(total) if counts else total
        alpha, start = self._scale * product.factor, 0
        for index, count in enumerate(counts or (left.shape[0],)):
            rows = slice(start, start + count)
            if count:
                part = right[rows]
                if test is not None:
                    part = part.to(test.dtype) @ test[index]
                _add_outer(part_sums[index], left[rows], part, alpha)
            start += count
        if counts:
            total.add_(part_sums)

    def add_gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Add a weight gradient, of a module whose input and output cannot be seen.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        product = self.products[name]
        dense = gradient.reshape(-1, *gradient.shape[-2:]).float()
        if (product.item.storage == "in_out") == product.on_input:
            dense = dense.mT
        test = self._test_of(name, gradient.device, torch.float32)
        values = dense if test is None else dense @ test
        self._sum(name, gradient.device).add_(values, alpha=self._scale * product.factor)

    def _sum(self, name: str, device: torch.device) -> torch.Tensor:
        key = f"{HALVES[self._half]}:{name}"
        if key not in self.sums:
            self.sums[key] = torch.zeros(self.products[name].shape, device=device)
        elif self.sums[key].device != device:  # read from a file
            self.sums[key] = self.sums[key].to(device)
        return self.sums[key]


def _product_dtype(values: torch.Tensor) -> torch.dtype:
    """Dtype in which thin products of activations are formed."""
    # Tensor cores multiply 16 bit and sum in float32; on a CPU float32 is as fast and exacter.
    return values.dtype if values.is_cuda and values.dtype in _HALF_PRECISION else torch.float32


def _add_outer(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """`total += scale * left^T right`, summed in float32."""
    if right.dtype == left.dtype and _product_dtype(left) == left.dtype != torch.float32:
        total.add_(torch.mm(left.T, right, out_dtype=torch.float32), alpha=scale)
    else:
        total.addmm_(left.T.float(), right.float(), alpha=scale)
