"""Sketch estimator: a thin random projection of every gradient instead of the gradient.

The first pass takes `Y = G Omega` on the long side. Every two further passes are a step of
subspace iteration (Halko, Martinsson, Tropp, arXiv 0909.4061), to the other side and back: each
multiplies with an orthonormal basis of what the pass before found in both halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from hlscore.gradients.groups import GroupSketches
from hlscore.gradients.products import Product, ProductSums, product_of
from hlscore.gradients.sketch import TestMatrices
from hlscore.records import Candidate

_SKETCH, _REFINED, _BASIS = "sketch:", "refined:", "basis:"


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


class SketchGradients:
    """Accumulates the sketches of both halves, and a small one per probe group.

    Args:
        tests: Test matrices of the first pass.
        groups: Probe groups of each half; `None` keeps none.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        tests: TestMatrices,
        *,
        groups: tuple[int, int] | None,
    ) -> None:
        self.groups = GroupSketches(groups)
        self._items = {item.module: item for item in candidates}
        self._tests = tests
        self._bases: dict[str, torch.Tensor] = {}
        products = {}
        for item in candidates:
            width = max(item.out_features, item.in_features)
            products[item.module] = product_of(
                item,
                tests.columns(width),
                long_side=True,
                shared=True,
                factor=tests.factor(width),
            )
        # Not bound methods: a cycle would keep the sums alive until the garbage collector comes.
        self._sketched = ProductSums(products, partial(_test_matrix, tests, products))
        self._refined: ProductSums | None = None
        self._pass = 1

    @property
    def current(self) -> ProductSums:
        """The sums that the current pass adds to."""
        return self._refined or self._sketched

    @property
    def captured(self) -> tuple[str, ...]:
        """Modules of the current pass: exact sketches need no second one."""
        return self.current.captured

    def is_exact(self, name: str) -> bool:
        """Whether the sketch of a module is its gradient itself."""
        item = self._items[name]
        return self._tests.keeps_whole(max(item.out_features, item.in_features))

    def begin_batch(self, half: int, scale: float) -> None:
        """Set the half that the next gradients belong to, and what they are multiplied with."""
        self.current.begin_batch(half, scale)

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a weight gradient, of a module whose input and output cannot be observed."""
        self.current.add_gradient(name, gradient)

    def keep(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Reduce an input to what `add_product` will need of it."""
        return self.current.keep(name, inputs)

    def add_product(
        self, name: str, kept: torch.Tensor, delta: torch.Tensor, counts: Sequence[int] = ()
    ) -> None:
        """Add the product of a weight gradient, from what `keep` gave and the output gradient."""
        self.current.add_product(name, kept, delta, counts)

    def end_group(self, half: int, group: int) -> None:
        """Close a group of examples.

        Args:
            group: Its number, those of the first half first.
        """
        if self.groups.kept is None or self._pass > 1:
            return
        for name, total in self.totals(half).items():
            whole = self.is_exact(name)
            self.groups.end(name, group, self._tests.compress(total) if whole else total)

    def begin_pass(self) -> None:
        """Start a further pass from what the last one found."""
        directions = {name: self._directions(name) for name in self.captured}
        # In the layout of files, so that a resumed run rounds like this one.
        self._bases = {
            name: torch.linalg.qr(found).Q.contiguous()
            for name, found in directions.items()
            if found is not None and not self.is_exact(name)
        }
        self._pass += 1
        self._refined = self._refined_sums()

    def sketches(self, name: str, counts: Sequence[int]) -> Sketches | None:
        """What was captured of a module; `None` when nothing ever reached it.

        Args:
            counts: What the sum of each half is divided by.
        """
        halves = self._sketched.both(name)
        if halves is None:
            return None
        refined = None if self._refined is None else self._refined.both(name)
        first, second = halves[0] / counts[0], halves[1] / counts[1]
        split = None
        if refined is not None:
            parts = [
                self._split(name, product / count, sketch)
                for product, count, sketch in zip(refined, counts, (first, second), strict=True)
            ]
            split = Refined(inside=(parts[0][0], parts[1][0]), outside=(parts[0][1], parts[1][1]))
        return Sketches(first=first, second=second, exact=self.is_exact(name), refined=split)

    def forget(self, name: str) -> None:
        """Release what is held for a module."""
        self._sketched.forget(name)
        self._bases.pop(name, None)
        self.groups.forget(name)
        if self._refined is not None:
            self._refined.forget(name)

    def totals(self, half: int) -> dict[str, torch.Tensor]:
        """The sums of a half that grow in the current pass, by module name."""
        return self.current.totals(half)

    def linear_state(self) -> dict[str, torch.Tensor]:
        """Everything that grows in the current pass: linear in the probes."""
        prefix = _SKETCH if self._refined is None else _REFINED
        sums = {f"{prefix}{key}": value for key, value in self.current.sums.items()}
        return sums if self._pass > 1 else self.groups.state() | sums

    def bases(self) -> dict[str, torch.Tensor]:
        """Bases that the current pass multiplies with, by module name."""
        return self._bases

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that is needed to go on, by name."""
        sketched = {f"{_SKETCH}{key}": value for key, value in self._sketched.sums.items()}
        bases = {f"{_BASIS}{key}": value for key, value in self._bases.items()}
        return self.groups.state() | sketched | bases | self.linear_state()

    def load(self, state: Mapping[str, torch.Tensor], *, number: int) -> None:
        """Take over a state of a pass, or a part of one."""
        self.groups.load(state)
        self._sketched.sums.update(_entries(state, _SKETCH))
        self._bases.update(_entries(state, _BASIS))
        self._pass = number
        if number > 1:
            if self._refined is None:
                self._refined = self._refined_sums()
            self._refined.sums.update(_entries(state, _REFINED))

    def _refined_sums(self) -> ProductSums:
        products = {
            name: product_of(
                self._items[name],
                basis.shape[-1],
                long_side=self._pass % 2 == 1,
                shared=basis.shape[0] == 1,
                factor=1.0,
            )
            for name, basis in self._bases.items()
        }
        return ProductSums(products, partial(_basis, self._bases))

    def _directions(self, name: str) -> torch.Tensor | None:
        """Leading directions of both halves in what the current pass found: [E, rows, l].

        Of a sketch only the first columns are used: the others measure what is left out.
        """
        halves = self.current.both(name)
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
        basis = self._bases[name]
        if basis.shape[-1] == basis.shape[-2]:  # the product is the gradient itself
            return product.mT, torch.zeros_like(measured)
        width = basis.shape[-2]
        omega = self._tests.of(width, basis.device, torch.float32)
        assert omega is not None  # noqa: S101 - whole gradients get no further pass
        seen = basis.mT @ omega[:, used:] / (self._tests.size - used) ** 0.5
        return product.mT, measured - product @ seen


def _test_matrix(
    tests: TestMatrices,
    products: Mapping[str, Product],
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    return tests.of(products[name].width, device, dtype)


def _basis(
    bases: Mapping[str, torch.Tensor], name: str, device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    basis = bases[name]
    if basis.shape[-1] == basis.shape[-2]:
        # A complete basis spans what the identity spans.
        return None
    if basis.device != device or basis.dtype != dtype:
        basis = basis.to(device=device, dtype=dtype)
    return basis[0] if basis.shape[0] == 1 else basis


def _entries(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


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
