"""Sketch estimator: sums of thin products `G T` instead of the gradients `G`.

For a linear map `G = delta^T X`, with X its input and delta the gradient at its output, so
`G T = delta^T (X T)` and `G^T T = X^T (delta T)`: two thin products instead of a large one, and no
gradient is formed. The first pass takes `Y = G Omega` on the long side. Every two further passes
are a step of subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061), to the other side and
back: each multiplies with an orthonormal basis of what the pass before found in both halves.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hlscore.gradients.sketch import TestMatrices
from hlscore.gradients.sums import HalfSums
from hlscore.records import Candidate

_SKETCH, _REFINED = ("first", "second"), ("refined first", "refined second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """Both half gradients, split by the span that the last pass multiplied with.

    Attributes:
        inside: Coordinates of A and B in the span, float32 [E, l, m].
        outside: Sketches of what is outside, from columns that the span was not found on,
            float32 [E, m, c].
    """

    inside: tuple[torch.Tensor, torch.Tensor]
    outside: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketches:
    """Mean sketches of one module.

    Attributes:
        first: `Y_A`, float32 [E, m, k].
        second: `Y_B`, float32 [E, m, k].
        exact: Whether they are the gradients themselves.
        refined: What further passes found, or `None` after one.
    """

    first: torch.Tensor
    second: torch.Tensor
    exact: bool
    refined: Refined | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """What a module's product is made of.

    Attributes:
        on_input: Whether the test matrix multiplies the input of the module, else the gradient
            at its output.
        width: Rows of the test matrix.
        shape: Shape of the product, [E, rows, columns].
        shared: Whether all matrices of the module are multiplied with the same test matrix.
        factor: What the product is multiplied with.
        turned: Whether the product has the layout of the weight the other way round.
    """

    on_input: bool
    width: int
    shape: tuple[int, int, int]
    shared: bool
    factor: float
    turned: bool

    @property
    def projects_input(self) -> bool:
        """Whether the input can be multiplied as soon as it is seen."""
        return self.on_input and self.shared and self.shape[-1] < self.width


def _product(
    item: Candidate, columns: int, *, long_side: bool, shared: bool, factor: float
) -> _Product:
    """A product on the long or the short side; of a square gradient, the input is the long one."""
    on_input = (item.in_features >= item.out_features) == long_side
    sides = (item.in_features, item.out_features)
    width, rows = sides if on_input else sides[::-1]
    return _Product(
        on_input=on_input,
        width=width,
        shape=(item.matrices, rows, columns),
        shared=shared,
        factor=factor,
        turned=(item.storage == "in_out") == on_input,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projected:
    """The input that was projected last; it is not kept alive, its graph holds a whole block."""

    source: weakref.ReferenceType[torch.Tensor]
    version: int
    test: torch.Tensor
    values: torch.Tensor


class SketchGradients(HalfSums):
    """Accumulates sketches in float32, one sum per half and module.

    Args:
        tests: Test matrices of the first pass.
        groups: Probe groups of each half; `None` keeps no group sketches.
    """

    kinds = (*_SKETCH, *_REFINED, "groups", "basis")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
    ) -> None:
        super().__init__((item.module for item in candidates), tests, groups)
        self._items = {item.module: item for item in candidates}
        self._thin = frozenset(name for name in self._items if not self.is_exact(name))
        self._pass = 1
        self._last: _Projected | None = None
        self._products = {}
        for name, item in self._items.items():
            width = max(item.out_features, item.in_features)
            columns, factor = tests.columns(width), tests.factor(width)
            self._products[name] = _product(
                item, columns, long_side=True, shared=True, factor=factor
            )

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
        if (
            last is None
            or last.source() is not inputs
            or last.version != version
            or last.test is not test
        ):
            values = inputs.to(test.dtype) @ test
            last = self._last = _Projected(
                source=weakref.ref(inputs), version=version, test=test, values=values
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
        product = self._products[name]
        delta = delta.reshape(-1, delta.shape[-1])
        kept = kept.to(delta.device).reshape(-1, kept.shape[-1])
        left, right = (delta, kept) if product.on_input else (kept, delta)
        test = None
        if not product.projects_input:
            test = self._test_matrix(name, delta.device, _product_dtype(right))
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

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a weight gradient, of a module whose input and output cannot be observed.

        Args:
            gradient: In the layout of the weight, any floating dtype.
        """
        product = self._products[name]
        dense = gradient.reshape(-1, *gradient.shape[-2:]).float()
        if product.turned:
            dense = dense.mT
        test = self._test_matrix(name, gradient.device, torch.float32)
        values = dense if test is None else dense @ test
        self._sum(name, gradient.device).add_(values, alpha=self._scale * product.factor)

    def _sum(self, name: str, device: torch.device) -> torch.Tensor:
        key = f"{self._growing[self._half]}:{name}"
        if key not in self.tensors:
            self.tensors[key] = torch.zeros(self._products[name].shape, device=device)
        elif self.tensors[key].device != device:  # read from a file
            self.tensors[key] = self.tensors[key].to(device)
        return self.tensors[key]

    def _test_matrix(
        self, name: str, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What a module is multiplied with, [n, k] or [E, n, k]; `None` for the identity."""
        if self._pass == 1:
            return self._tests.of(self._products[name].width, device, dtype)
        basis = self.tensors[f"basis:{name}"]
        if basis.shape[-1] == basis.shape[-2]:
            # A complete basis spans what the identity spans.
            return None
        if basis.device != device or basis.dtype != dtype:
            basis = basis.to(device=device, dtype=dtype)
        return basis[0] if basis.shape[0] == 1 else basis

    def end_group(self, half: int, group: int) -> None:
        """Close a group of examples; further passes keep no sketches of groups."""
        if self._pass == 1:
            super().end_group(half, group)

    def is_exact(self, name: str) -> bool:
        """Whether the sketch of a module is its gradient itself: it needs no second pass."""
        item = self._items[name]
        return self._tests.keeps_whole(max(item.out_features, item.in_features))

    def begin_pass(self) -> None:
        """Start a further pass from what the last one found."""
        directions = {name: self._directions(name) for name in self.captured}
        for name in self._items:
            for kind in (*_REFINED, "basis"):
                self.tensors.pop(f"{kind}:{name}", None)
        for name, found in directions.items():
            if found is not None and not self.is_exact(name):
                # In the layout of files, so that a resumed run rounds like this one.
                self.tensors[f"basis:{name}"] = torch.linalg.qr(found).Q.contiguous()
        self._enter_pass(self._pass + 1)

    def _enter_pass(self, number: int) -> None:
        self._pass, self._growing, bases = number, _REFINED, self.bases()
        self.captured = tuple(bases)
        self._products = {
            name: _product(
                self._items[name],
                basis.shape[-1],
                long_side=number % 2 == 1,
                shared=basis.shape[0] == 1,
                factor=1.0,
            )
            for name, basis in bases.items()
        }

    def bases(self) -> dict[str, torch.Tensor]:
        """Orthonormal bases that the current pass multiplies with, by module name."""
        found = {name: self.tensors.get(f"basis:{name}") for name in self._items}
        return {name: basis for name, basis in found.items() if basis is not None}

    def load(self, state: Mapping[str, torch.Tensor], *, number: int = 1) -> None:
        """Take over tensors of a pass, all or a part of them."""
        super().load(state)
        if number > 1 and number != self._pass:
            self._enter_pass(number)

    def sketches(self, name: str, counts: Sequence[float]) -> Sketches | None:
        """What was captured of a module; `None` when nothing ever reached it.

        Args:
            counts: What the sum of each half is divided by.
        """
        halves, products = self.both(name), self.both(name, _REFINED)
        if halves is None:
            return None
        first, second = halves[0] / counts[0], halves[1] / counts[1]
        refined = None
        if products is not None:
            parts = [
                self._split(name, product / count, sketch)
                for product, count, sketch in zip(products, counts, (first, second), strict=True)
            ]
            refined = Refined(inside=(parts[0][0], parts[1][0]), outside=(parts[0][1], parts[1][1]))
        return Sketches(first=first, second=second, exact=self.is_exact(name), refined=refined)

    def _directions(self, name: str) -> torch.Tensor | None:
        """Leading directions of both halves in what the current pass found: [E, rows, l].

        Of a sketch only the first columns are used: the others measure what is left out.
        """
        halves = self.both(name, self._growing[:2])
        if halves is None:
            return None
        size = self._tests.size
        if self._pass == 1:
            return torch.cat([half[..., : size // 2] for half in halves], dim=-1)
        return torch.cat([_leading_columns(half, size) for half in halves], dim=-1)

    def _split(
        self, name: str, product: torch.Tensor, sketch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is inside the span of the last pass, and a sketch of what is outside.

        The last pass is an odd one: it gave `G P` with P on the long side.
        """
        used = self._tests.size // 2
        measured = sketch[..., used:] * (self._tests.size / (self._tests.size - used)) ** 0.5
        basis = self.tensors[f"basis:{name}"]
        if basis.shape[-1] == basis.shape[-2]:  # the product is the gradient itself
            return product.mT, torch.zeros_like(measured)
        omega = self._tests.of(basis.shape[-2], basis.device, torch.float32)
        assert omega is not None  # noqa: S101 - whole gradients get no further pass
        seen = basis.mT @ omega[:, used:] / (self._tests.size - used) ** 0.5
        return product.mT, measured - product @ seen


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


def _leading_columns(matrices: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` leading left singular vectors, largest first: float32 [E, rows, size].

    Matrices with no more columns than that are returned as they are.
    """
    rows, columns = matrices.shape[-2:]
    if columns <= size:
        return matrices
    # Apple GPUs have no float64.
    wide = (matrices.cpu() if matrices.device.type == "mps" else matrices).double()
    if rows <= columns:
        found: torch.Tensor = torch.linalg.eigh(wide @ wide.mT).eigenvectors.flip(-1)
    else:
        vectors = wide @ torch.linalg.eigh(wide.mT @ wide).eigenvectors.flip(-1)
        # Orthonormal also where a singular value is zero; QR keeps the order of the columns.
        found = torch.linalg.qr(vectors).Q
    return found.float().to(matrices.device)[..., :size]
