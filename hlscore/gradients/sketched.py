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

from hlscore.gradients.sketch import TestMatrices, with_float64
from hlscore.gradients.sums import HalfSums
from hlscore.records import Candidate

_REFINED = ("refined first", "refined second")

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketches:
    """Mean sketches of one module; `inside` and `outside` are those of further passes."""

    halves: Pair  # `Y_A` and `Y_B`, float32 [E, m, k]
    exact: bool  # whether they are the gradients themselves
    # Coordinates of A and B in the span that the last pass multiplied with, float32 [E, l, m].
    inside: Pair | None = None
    # What is outside, from columns that the span was not found on, float32 [E, m, c].
    outside: Pair | None = None


class _Product:
    """What the product of a module is made of.

    Args:
        columns: Columns of the test matrix.
        long_side: Whether it multiplies the long side of the gradient; of a square one, the input
            is the long side.
        shared: Whether all matrices of the module are multiplied with the same test matrix.
        factor: What the product is multiplied with.
    """

    def __init__(
        self, item: Candidate, columns: int, *, long_side: bool, shared: bool, factor: float
    ) -> None:
        # Whether the test matrix multiplies the input of the module, else its output's gradient.
        self.on_input = (item.in_features >= item.out_features) == long_side
        sides = (item.in_features, item.out_features)
        self.width, rows = sides if self.on_input else sides[::-1]
        self.shape = (item.matrices, rows, columns)
        self.shared, self.factor = shared, factor
        # Whether the product has the layout of the weight the other way round.
        self.turned = (item.storage == "in_out") == self.on_input
        self.reduces = columns < self.width
        # Whether the input can be multiplied as soon as it is seen.
        self.projects_input = self.on_input and shared and self.reduces


class SketchGradients(HalfSums):
    """Accumulates sketches in float32, one sum per half and module."""

    kinds = (*HalfSums.kinds, *_REFINED, "basis")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
    ) -> None:
        super().__init__(candidates, tests, groups=groups)
        self._items = {item.module: item for item in candidates}
        self._pass, self._products = 1, {}
        for name, item in self._items.items():
            width = max(item.out_features, item.in_features)
            columns = tests.columns(width)
            factor = tests.unit if columns < width else 1.0
            self._products[name] = _Product(
                item, columns, long_side=True, shared=True, factor=factor
            )
        # Sketches of the others are the gradients themselves: they need no second pass.
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
        """Add a weight gradient, of a module whose input and output cannot be observed."""
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
            sketched = name in self._sketched
            return self._tests.of(self._products[name].width, device, dtype) if sketched else None
        basis = self.tensors[f"basis:{name}"]
        if basis.shape[-1] == basis.shape[-2]:
            # A complete basis spans what the identity spans.
            return None
        if basis.device != device or basis.dtype != dtype:
            basis = basis.to(device=device, dtype=dtype)
        return basis[0] if basis.shape[0] == 1 else basis

    def begin_pass(self) -> None:
        """Start a further pass from what the last one found."""
        size, found = self._tests.size, {}
        for name in self.captured:
            halves = self.both(name, self._growing[:2])
            if halves is None or name not in self._sketched:
                continue
            # Of a sketch only the first columns are used: the others measure what is left out.
            leading = [
                half[..., : size // 2] if self._pass == 1 else _leading_columns(half, size)
                for half in halves
            ]
            found[name] = torch.cat(leading, dim=-1)
        for name in self._items:
            for kind in (*_REFINED, "basis"):
                self.tensors.pop(f"{kind}:{name}", None)
        for name, directions in found.items():
            # In the layout of files, so that a resumed run rounds like this one.
            self.tensors[f"basis:{name}"] = torch.linalg.qr(directions).Q.contiguous()
        self._enter_pass(self._pass + 1)

    def _enter_pass(self, number: int) -> None:
        # Groups are sketched in the first pass alone.
        self._pass, self._growing, self._groups = number, _REFINED, None
        bases = self.bases()
        self.captured = tuple(bases)
        self._products = {
            name: _Product(
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

    def load(self, state: Mapping[str, torch.Tensor], number: int) -> None:
        """Take over the tensors of an unfinished pass, which are counted from 1."""
        super().load(state, number)
        if number > 1:
            self._enter_pass(number)

    def take(
        self, name: str, counts: Sequence[float]
    ) -> tuple[Sketches | None, torch.Tensor | None]:
        """Sketches of a module and those of all its groups; see `ExactGradients.take`."""
        halves, products = self.both(name), self.both(name, _REFINED)
        basis, groups = self.tensors.get(f"basis:{name}"), self.take_groups(name)
        if halves is None:
            return None, groups
        halves = halves[0] / counts[0], halves[1] / counts[1]
        exact = name not in self._sketched
        if products is None or basis is None:
            return Sketches(halves=halves, exact=exact), groups
        # The last pass is an odd one: it gave `G P` with P on the long side.
        used, size = self._tests.size // 2, self._tests.size
        inside, outside = [], []
        for half, product, count in zip(halves, products, counts, strict=True):
            mean = product / count
            inside.append(mean.mT)
            measured = half[..., used:] * (size / (size - used)) ** 0.5
            if basis.shape[-1] == basis.shape[-2]:  # the product is the gradient itself
                outside.append(torch.zeros_like(measured))
                continue
            omega = self._tests.of(basis.shape[-2], basis.device, torch.float32)
            outside.append(measured - mean @ (basis.mT @ omega[:, used:] / (size - used) ** 0.5))
        return Sketches(
            halves=halves,
            exact=exact,
            inside=(inside[0], inside[1]),
            outside=(outside[0], outside[1]),
        ), groups


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
    wide = with_float64(matrices).double()
    if rows <= columns:
        found: torch.Tensor = torch.linalg.eigh(wide @ wide.mT).eigenvectors.flip(-1)
    else:
        vectors = wide @ torch.linalg.eigh(wide.mT @ wide).eigenvectors.flip(-1)
        # Orthonormal also where a singular value is zero; QR keeps the order of the columns.
        found = torch.linalg.qr(vectors).Q
    return found.float().to(matrices.device)[..., :size]
