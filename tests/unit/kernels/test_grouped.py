"""Products over rows sorted by expert: the compiled kernels against float64, for all layouts."""

from itertools import pairwise

import pytest
import torch

from intel_ft.kernels import grouped, ops
from intel_ft.kernels.gemm import library

needs_kernels = pytest.mark.skipif(
    not ops.compiled(torch.zeros(1, dtype=torch.bfloat16)), reason="no compiled kernels here"
)
BOUNDS = torch.tensor([0, 16, 16, 64, 112])  # the second of four experts has no rows


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def exact(terms) -> torch.Tensor:
    parts = [
        sum(x[start:stop].double() @ w[expert].double().T for x, w in terms)
        for expert, (start, stop) in enumerate(pairwise(BOUNDS))
    ]
    return torch.cat(parts)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.double() - expected).norm() <= 2**-8 * expected.norm()


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("k", "n"), [(64, 96), (80, 40), (2048, 80), (18, 6), (32, 700)])
def test_grouped_linear(k, n, transposed) -> None:
    x, w = random(112, k), random(4, k, n).mT if transposed else random(4, n, k)
    close(grouped.grouped_linear([(x, w)], BOUNDS), exact([(x, w)]))


@needs_kernels
def test_terms_are_summed_and_a_part_of_the_columns_will_do() -> None:
    x, a = random(112, 64), random(112, 32)
    w, b = random(4, 128, 64), random(4, 128, 32)
    terms = [(x, w[:, 64:]), (a, b[:, 64:])]
    close(grouped.grouped_linear(terms, BOUNDS), exact(terms))


@needs_kernels
@pytest.mark.parametrize(("r", "size"), [(32, 64), (64, 700), (32, 18)])
@pytest.mark.parametrize("copies", [1, 5])  # of four experts: fewer than sixteen, and more
def test_grouped_outer(r, size, copies) -> None:
    p, q = random(112 * copies, r), random(112 * copies, size)
    bounds = torch.cat([BOUNDS[:1], *(BOUNDS[1:] + 112 * i for i in range(copies))])
    for rank in (r, r - 3):
        found = grouped.grouped_outer(p, grouped.Rows(q), bounds, 0.5, rank)
        assert found.dtype == torch.float32 and found.shape == (4 * copies, rank, size)
        assert not found[1].any()
        for expert, (start, stop) in enumerate(pairwise(bounds)):
            right = 0.5 * p[start:stop, :rank].double().T @ q[start:stop].double()
            close(found[expert], right)
        columns = grouped.grouped_outer(p, grouped.Rows(q), bounds, 0.5, rank, by_column=True)
        torch.testing.assert_close(columns, found.permute(2, 1, 0), rtol=1e-5, atol=1e-5)
    tokens = torch.randint(0, 30, (len(q),))
    rows = torch.cat((q[:29], torch.zeros(1, size).bfloat16()))[tokens]
    found = grouped.grouped_outer(p, grouped.Rows(q[:29], tokens), bounds, 1.0, r)
    assert torch.equal(found, grouped.grouped_outer(p, grouped.Rows(rows), bounds, 1.0, r))


@pytest.fixture
def on_tiles(monkeypatch) -> None:
    """As on a CPU with AMX, whose tile registers are emulated elsewhere (kernels/gemm/tiles.h)."""
    found = library.library()
    if found.library is None or not hasattr(found.library, "expert_multiply"):
        pytest.skip(f"no products with AVX-512 here: {found.reason}")
    monkeypatch.setattr(grouped, "why_no_tiles", lambda: None)


def check_rounded(matrices: grouped.Int8Experts, weight: torch.Tensor) -> torch.Tensor:
    """The weights as they are in int8, near enough."""
    plain = grouped.Int8Matrices.of(weight)
    rounded = plain.values * plain.scales[..., None]
    assert (rounded - weight).abs().max() <= 0.51 * plain.scales.max()
    return rounded


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.double() - expected).norm() <= 0.015 * expected.norm()


@needs_kernels
@pytest.mark.parametrize(("k", "n"), [(64, 96), (2048, 80), (20, 12), (36, 700)])
def test_int8_in_both_directions_with_a_further_term(k, n) -> None:
    weight = random(4, n, k)
    matrices = grouped.int8_matrices(weight)
    assert isinstance(matrices, grouped.Int8Matrices) and matrices.values.dtype == torch.int8
    rounded = check_rounded(matrices, weight)
    x, grad = random(112, k), random(112, n)
    more, other = random(112, 32), random(4, n, 32)
    near(matrices.linear(x, BOUNDS, [(more, other)]), exact([(x, rounded), (more, other)]))
    more, other = random(112, 64), random(4, 64, k).mT
    found = matrices.input_gradient(grad, BOUNDS, [(more, other)])
    near(found, exact([(grad, rounded.mT), (more, other)]))
    near(matrices.linear(x, BOUNDS, []), exact([(x, rounded)]))


@needs_kernels
@pytest.mark.parametrize(("k", "n", "rank"), [(64, 128, 32), (192, 64, 64), (1088, 320, 32)])
def test_int8_on_tiles_in_both_directions_with_lora(on_tiles, k, n, rank) -> None:
    weight = random(4, n, k)
    matrices = grouped.int8_matrices(weight)
    assert isinstance(matrices, grouped.Int8Tiles)
    assert matrices.values.shape == weight.shape  # one byte each, once
    rounded = check_rounded(matrices, weight)
    a, b = random(4, rank, k) / 8, random(4, n, rank) / 8
    x, tokens = random(20, k), torch.randint(0, 21, (112,))
    rows = torch.cat((x, torch.zeros(1, k)))[tokens].bfloat16()
    hidden, grad = (2 * torch.rand(112, 2 * k) - 1).bfloat16(), random(112, n)
    gate, up = hidden.double().chunk(2, -1)
    for source, values in (
        (grouped.Rows(rows), rows),
        (grouped.Rows(x, tokens), rows),
        (grouped.Rows(hidden, gated=True), (gate.sigmoid() * gate * up).bfloat16()),
    ):
        out, products = matrices.linear(source, BOUNDS, a, b)
        assert products is not None
        close(products, exact([(values, a)]))
        near(out, exact([(values, rounded), (products, b)]))
    found, products = matrices.input_gradient(grouped.Rows(grad), BOUNDS, a, b)
    assert products is not None
    close(products, exact([(grad, b.mT)]))
    near(found, exact([(grad, rounded.mT), (products, a.mT)]))
    found, products = matrices.linear(grouped.Rows(rows), BOUNDS, None, None)
    near(found, exact([(rows, rounded)]))
    assert products is None


@needs_kernels
def test_operands_that_do_not_fit_int8_on_tiles_are_refused(on_tiles) -> None:
    matrices = grouped.int8_matrices(random(4, 128, 64))
    assert isinstance(matrices, grouped.Int8Tiles)
    right = random(4, 32, 64), random(4, 128, 32)
    for k, a, b in ((32, None, None), (128, None, None), (64, random(4, 16, 64), right[1])):
        with pytest.raises(ValueError, match="fit"):
            matrices.linear(grouped.Rows(random(112, k)), BOUNDS, a, b)
    with pytest.raises(ValueError, match="fit"):
        matrices.linear(grouped.Rows(random(112, 64)), BOUNDS, right[0], random(4, 64, 32))


@needs_kernels
def test_int8_takes_multiples_of_four() -> None:
    assert grouped.int8_matrices(random(4, 6, 8)) is None


def test_other_dtypes_take_torch_operations() -> None:
    x, w = torch.randn(112, 6), torch.randn(4, 5, 6)
    torch.testing.assert_close(
        grouped.grouped_linear([(x, w)], BOUNDS).double(), exact([(x, w)]), rtol=1e-5, atol=1e-5
    )
    found = grouped.grouped_outer(x, grouped.Rows(x), BOUNDS, 2.0, 5)
    torch.testing.assert_close(found[2], 2 * x[16:64, :5].T @ x[16:64])
    columns = grouped.grouped_outer(x, grouped.Rows(x), BOUNDS, 2.0, 5, by_column=True)
    torch.testing.assert_close(columns, found.permute(2, 1, 0))


@needs_kernels
def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="not contiguous rows"):
        grouped.grouped_linear([(random(112, 8), random(4, 6, 10))], BOUNDS)


def test_an_odd_number_of_rows_reads_none_behind_them() -> None:
    p = torch.ones(3, 16, dtype=torch.bfloat16)
    q = torch.full((5, 32), float("nan"), dtype=torch.bfloat16)
    q[:3] = 2.0
    out = grouped.grouped_outer(p, grouped.Rows(q[:3]), torch.tensor([0, 3]), 1.0, 16)
    assert torch.equal(out, torch.full((1, 16, 32), 6.0))
