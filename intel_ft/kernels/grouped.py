"""Products over rows that are sorted by expert, each expert with a matrix of its own.

bf16 tensors on a CPU go to the compiled kernels (experts.cpp), where those are loaded; others are
computed expert by expert with torch operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from intel_ft.kernels import expert_rows
from intel_ft.kernels.gemm import experts
from intel_ft.kernels.gemm.library import why_no_tiles
from intel_ft.kernels.ops import call, compiled, quantize

ROW_MULTIPLE = 16
"""Each expert's rows begin and end at a multiple of this, in the compiled kernels."""

Term = tuple[Tensor, Tensor]
"""x [rows, k] and w [experts, n, k], of which one matrix or its transpose is contiguous."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows [rows, size] that are sorted by expert, as an operand of a product.

    They are x itself, or x [count, size] at tokens int64 [rows] (zeros at `count`), or if `gated`
    silu(gate) * up of x [rows, gate and up].
    """

    x: Tensor
    tokens: Tensor | None = None
    gated: bool = False

    def tensor(self) -> Tensor:
        """The rows, contiguous."""
        if self.gated:
            return expert_rows.swiglu(self.x)
        return self.x if self.tokens is None else expert_rows.gather(self.x, self.tokens)


def can_group(weight: Tensor) -> bool:
    """Whether the compiled kernels take this weight [experts, n, k]."""
    return (
        compiled(weight)
        and min(weight.stride()[1:]) == 1
        and not any(size % 2 for size in weight.shape[1:])
    )


def grouped_linear(terms: Sequence[Term], bounds: Tensor) -> Tensor:
    """The sum of x[i] w[e]^T over the terms, e the expert of row i: [rows, n].

    bounds int64 [experts + 1]: where each expert's rows begin, and the end.
    """
    x, w = terms[0]
    if not all(can_group(weight) for _, weight in terms):
        return _by_expert(terms, bounds)
    out = x.new_empty(len(x), w.shape[1])
    call("grouped_linear", _table(terms), len(terms), bounds, len(bounds) - 1, w.shape[1], out)
    return out


def _table(terms: Sequence[Term]) -> Tensor:
    """The terms as experts.cpp reads them: six numbers each."""
    numbers = []
    for rows, weight in terms:
        if not rows.is_contiguous() or rows.shape[1] != weight.shape[2]:
            raise ValueError(f"{tuple(rows.shape)} are not contiguous rows for {weight.shape}")
        by_output = weight.stride(2) == 1
        leading = weight.stride(1) if by_output else weight.stride(2)
        place = rows.data_ptr(), weight.data_ptr()
        numbers += [*place, weight.shape[2], weight.stride(0), leading, int(by_output)]
    return torch.tensor(numbers, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Int8Matrices:
    """The matrices of all experts in int8, kept once and read in both directions.

    values int8 [experts, out, in]; scales float32 [experts, out]; sums int32, 128 times the sum of
    the values over `in` [experts, out], and over `out` [experts, in].
    """

    values: Tensor
    scales: Tensor
    sums: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Matrices":
        """weight bf16 [experts, out, in], rounded expert by expert, one scale per output."""
        values, scales = _rounded(weight, lambda matrix: matrix)
        over = (128 * values.sum(dim, dtype=torch.int32) for dim in (2, 1))
        return cls(values, scales, (next(over), next(over)))

    def linear(self, x: Tensor, bounds: Tensor, more: Sequence[Term]) -> Tensor:
        """x [rows, in] times each row's matrix, transposed, plus further terms: [rows, out]."""
        out = x.new_empty(len(x), self.values.shape[1])
        return self._multiply(quantize(x), True, self.scales, bounds, more, out)

    def input_gradient(self, grad: Tensor, bounds: Tensor, more: Sequence[Term]) -> Tensor:
        """grad [rows, out] times each row's matrix, plus further terms: [rows, in]."""
        values, scales = torch.empty(grad.shape, dtype=torch.uint8), torch.empty(len(grad))
        sizes = len(self.values), grad.shape[1]
        call("grouped_quantize", grad, self.scales, bounds, *sizes, values, scales)
        out = grad.new_empty(len(grad), self.values.shape[2])
        return self._multiply((values, scales), False, None, bounds, more, out)

    def _multiply(
        self,
        x: tuple[Tensor, Tensor],
        by_output: bool,
        scales: Tensor | None,
        bounds: Tensor,
        more: Sequence[Term],
        out: Tensor,
    ) -> Tensor:
        sizes = x[0].shape[1], out.shape[1], int(by_output)
        weights = scales, self.sums[not by_output]
        rows = _table(more), len(more), bounds, len(self.values)
        call("grouped_int8", *x, self.values, *sizes, *weights, *rows, out)
        return out


@dataclass(frozen=True, eq=False)
class Int8Tiles:
    """The same in the layout of AMX tiles, so that forward multiplies them without repacking.

    values int8 [experts, out, in], each matrix in the order of kernels.gemm.experts; scales float32
    [experts, out].
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Tiles":
        """weight bf16 [experts, out, in], rounded as by Int8Matrices."""
        return cls(*_rounded(weight, experts.in_tiles))

    def linear(
        self, rows: Rows, bounds: Tensor, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The rows times each row's matrix, transposed, plus (rows a^T) b^T, and rows a^T, in bf16.

        a [experts, rank, in], b [experts, out, rank] or both None; the rank is a multiple of 32.
        """
        return self._multiply(rows, bounds, (a, b), None, backward=False)

    def input_gradient(
        self, grad: Rows, bounds: Tensor, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """grad times each row's matrix, plus (grad b) a, and grad b, in bf16."""
        low_rank = (None, None) if a is None or b is None else (b.mT, a.mT)
        return self._multiply(grad, bounds, low_rank, self.scales, backward=True)

    def _multiply(
        self,
        rows: Rows,
        bounds: Tensor,
        low_rank: tuple[Tensor | None, Tensor | None],
        columns: Tensor | None,
        *,
        backward: bool,
    ) -> tuple[Tensor, Tensor | None]:
        narrow, wide = low_rank
        tiles, products = experts.rows_pass(
            rows.x, bounds, tokens=rows.tokens, gated=rows.gated, columns=columns, narrow=narrow
        )
        added = None if products is None or wide is None else (products, wide)
        scales = None if backward else self.scales
        out = experts.multiply(
            tiles, self.values, bounds, scales=scales, backward=backward, low_rank=added
        )
        return out, products


Int8Experts = Int8Matrices | Int8Tiles


def int8_matrices(weight: Tensor) -> Int8Experts | None:
    """weight [experts, out, in] in int8, or None where the compiled kernels cannot take it."""
    if not compiled(weight) or any(size % 4 for size in weight.shape[1:]):
        return None
    if why_no_tiles() is None and not any(n % experts.SIZE_MULTIPLE for n in weight.shape[1:]):
        return Int8Tiles.of(weight)
    return Int8Matrices.of(weight)


def _rounded(weight: Tensor, place: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """weight bf16 [experts, out, in] in int8, each matrix as `place` orders it, and its scales."""
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[:2])
    for expert, matrix in enumerate(weight):
        rounded, scales[expert] = quantize(matrix.contiguous())
        values[expert] = place(rounded.bitwise_xor_(128).view(torch.int8))  # minus 128
    return values, scales


def grouped_outer(
    p: Tensor, q: Rows, bounds: Tensor, scale: float, rank: int, *, by_column: bool = False
) -> Tensor:
    """scale * p_e^T q_e over each expert's rows, its first `rank` rows.

    p [rows, at least rank], q [rows, size]. Returns float32 [experts, rank, size], or with
    `by_column` [size, rank, experts].
    """
    x = q.tensor() if q.gated else q.x
    count, size = len(bounds) - 1, x.shape[1]
    if not compiled(p) or not compiled(x):
        ends, rows = bounds.tolist(), q.tensor()
        parts = [p[a:b, :rank].float().T @ rows[a:b].float() * scale for a, b in pairwise(ends)]
        return torch.stack(parts, -1).transpose(0, 1) if by_column else torch.stack(parts)
    out = torch.empty(size, rank, count) if by_column else torch.empty(count, rank, size)
    sizes = count, p.shape[1], rank, size
    call(
        *("grouped_outer", p, x, q.tokens, len(x), bounds),
        *(*sizes, int(by_column), float(scale), out),
    )
    return out


def _by_expert(terms: Sequence[Term], bounds: Tensor) -> Tensor:
    x, w = terms[0]
    out = torch.zeros(len(x), w.shape[1], device=x.device)
    for expert, (start, stop) in enumerate(pairwise(bounds.tolist())):
        for rows, weight in terms:
            out[start:stop] += rows[start:stop].float() @ weight[expert].float().T
    return out.to(x.dtype)
