"""The compiled kernels match the torch formulas, which match autograd; how they are compiled."""

import math
import os
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from intel_ft.kernels import build, ops
from intel_ft.kernels.build import Kernels, kernels

SEGMENTS = (1, 63, 64, 65, 200)
NOT_HERE = ("no C++ compiler", "this CPU has no bf16", build.DISABLE, "ONEDNN_MAX", "DNNL_MAX")


@pytest.fixture
def compiled() -> None:
    """Skips where this machine cannot have kernels; where it could, their absence is a failure."""
    found = kernels()
    if found.library is None and found.reason.startswith(NOT_HERE):
        pytest.skip(found.reason)
    assert found.library is not None, found.reason


@pytest.fixture
def only_torch(monkeypatch) -> None:
    monkeypatch.setattr(ops, "kernels", lambda: Kernels(None, "switched off by a test"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def half(*shape: int, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * size).bfloat16()


def row_errors(found, wanted, floor=0.0) -> torch.Tensor:
    assert found.shape == wanted.shape
    found, wanted = found.double().flatten(0, -2), wanted.double().flatten(0, -2)
    assert found.isfinite().all()
    return (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(max(floor, 1e-30))


def assert_rows_close(found, wanted, bound, floor=0.0) -> None:
    """Each row by its own norm (or `floor`, if that is larger): no row hides behind the others."""
    errors = row_errors(found, wanted, floor)
    assert errors.max() <= bound, f"row {errors.argmax()}: {errors.max():.2e}"


# -- compiled bf16 against the formula in float32 --------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("size", [5, 64, 80, 128, 897])
def test_rms_norm_and_its_gradient(compiled, rows, size) -> None:
    x, grad, residual = half(rows, size, size=3), half(rows, size), half(rows, size)
    weight = half(size)
    wide = (x.float(), weight.float())
    found = ops.rms_norm(x, weight, 1e-5)
    assert found.dtype == torch.bfloat16
    assert_rows_close(found, ops.rms_norm(*wide, 1e-5), 6e-3)
    for extra in (None, residual):
        found = ops.rms_norm_backward(x, weight, grad, 1e-5, residual=extra)
        wanted = ops.rms_norm_backward(
            *wide, grad.float(), 1e-5, residual=None if extra is None else extra.float()
        )
        assert_rows_close(found, wanted, 4e-3)


def test_rms_norm_keeps_its_epsilon_and_takes_large_values(compiled) -> None:
    weight = half(64)
    for size in (0.0, 1e-4, 1e15):
        x, grad = half(3, 64, size=size), half(3, 64)
        wide = (x.float(), weight.float())
        assert_rows_close(ops.rms_norm(x, weight, 1e-5), ops.rms_norm(*wide, 1e-5), 6e-3)
        found = ops.rms_norm_backward(x, weight, grad, 1e-5)
        assert found.isfinite().all()
        if size < 1:  # beyond, the formula's own scale**3 leaves float32
            assert_rows_close(found, ops.rms_norm_backward(*wide, grad.float(), 1e-5), 4e-3)


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_swiglu_and_its_gradient(compiled, rows, size) -> None:
    gate, up, grad = half(rows, 83, size=size), half(rows, 83), half(rows, 83)
    wide = [x.float() for x in (gate, up, grad)]
    assert_rows_close(ops.swiglu(gate, up), ops.swiglu(*wide[:2]), 4e-3)
    results = zip(ops.swiglu_backward(gate, up, grad), ops.swiglu_backward(*wide), strict=True)
    for found, wanted in results:
        assert found.dtype == torch.bfloat16
        assert_rows_close(found, wanted, 4e-3)


def test_swiglus_gradient_in_place_is_the_same_in_the_memory_of_its_inputs(compiled) -> None:
    inputs = [half(300, 83) for _ in range(3)]
    places = [x.data_ptr() for x in inputs]
    wanted = ops.swiglu_backward(*inputs)
    found = ops.swiglu_backward(*inputs, in_place=True)
    assert all(map(torch.equal, found, wanted))
    assert [x.data_ptr() for x in found] == places


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_keeps_its_share_and_repeats_itself(compiled, rate, dtype) -> None:
    x = torch.full((1000, 300), 3.0, dtype=dtype)
    dropped = ops.dropout(x, rate, 2**31 + 7)
    kept = dropped != 0
    assert kept.float().mean() == pytest.approx(1 - rate, abs=5 * (0.25 / x.numel()) ** 0.5)
    for axis in (0, 1):  # no row and no column is special
        share = kept.float().mean(axis)
        noise = (rate * (1 - rate) / kept.shape[axis]) ** 0.5
        assert (share - 1 + rate).abs().max() < 6 * noise
    assert dropped[kept].float().mean() == pytest.approx(3 / (1 - rate), rel=8e-3)
    assert torch.equal(ops.dropout(x, rate, 2**31 + 7), dropped)
    for other in (2**31 + 8, 7, 2**32 - 1):
        again = ops.dropout(x, rate, other) != 0
        both = (again & kept).float().mean()
        assert both == pytest.approx((1 - rate) ** 2, abs=0.01), other
    total = torch.ones_like(x)
    assert ops.dropout(x, rate, 2**31 + 7, accumulate_into=total) is total
    torch.testing.assert_close(total.float(), 1 + dropped.float(), rtol=8e-3, atol=0.0)


def attention_case(heads, kv_heads, dim, segments, size=1.0, parents=None):
    tokens = sum(segments)
    bounds = F.pad(torch.tensor(segments).cumsum(0), (1, 0))
    starts = [0] * (len(segments) + 1)  # a root follows segment -1
    for index, parent in enumerate(parents or ()):
        starts[index] = 0 if parent < 0 else starts[parent] + segments[parent]
    positions = [torch.arange(n) + start for n, start in zip(segments, starts, strict=False)]
    positions = torch.cat(positions).float()
    parents = None if parents is None else torch.tensor(parents)
    angles = torch.outer(positions, 10000.0 ** -torch.linspace(0, 1, dim // 2)).repeat(1, 2)
    q, grad = half(tokens, heads, dim, size=size), half(tokens, heads, dim)
    k, v = half(tokens, kv_heads, dim, size=size), half(tokens, kv_heads, dim)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    return (q, k, v, cos, sin, bounds, parents, dim**-0.5), grad


def widened(case):
    return [x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in case]


FOREST = (40, 33, 1, 64, 20, 37), (-1, 0, 1, 1, 0, -1)
"""Segments, and which one each follows: a tree of five, and one alone."""

BY_DEPTH = (40, 33, 20, 37, 1, 64), (-1, 0, 0, -1, 1, 1)
"""The same tree, with the children of all segments after the segments of their depth."""


@pytest.mark.parametrize(
    ("segments", "parents"),
    [*[((n,), None) for n in SEGMENTS], (SEGMENTS, None), (SEGMENTS[::-1], None), FOREST, BY_DEPTH],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 80), (6, 2, 128), (5, 1, 12), (2, 2, 256)]
)
def test_attention_and_its_gradient(
    compiled, monkeypatch, heads, kv_heads, dim, segments, parents
) -> None:
    """As exact as twice the error of torch's attention in bf16 on this CPU."""
    case, grad = attention_case(heads, kv_heads, dim, segments, parents=parents)
    out, logsumexp = ops.attention(*case)
    found = ops.attention_backward(*case, out, logsumexp, grad)
    wanted, _ = ops.attention(*widened(case))
    exact = ops.attention_backward(*widened(case), wanted, logsumexp, grad.float())
    monkeypatch.setattr(ops, "kernels", lambda: Kernels(None, "switched off by a test"))
    plain_out, nothing = ops.attention(*case)
    plain = ops.attention_backward(*case, plain_out, nothing, grad)
    rounding = torch.finfo(torch.bfloat16).eps / 2
    assert row_errors(out, wanted).max() <= 2 * row_errors(plain_out, wanted).max() + rounding
    for one, other, known, like in zip(found, plain, exact, case[:3], strict=True):
        assert one.shape == like.shape
        assert one.is_contiguous()
        # Gradients cancel: exactly where a token is alone in its segment, nearly in others.
        assert_rows_close(one, known, 8e-2, floor=0.1 * dim**0.5)  # no row is wrong
        if max(segments) > 1:
            error, bound = ((x.float() - known).norm() / known.norm() for x in (one, other))
            assert error <= 2 * bound


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 64), (4, 2, 96)])
def test_attention_on_tiles_is_that_of_brgemm(compiled, monkeypatch, heads, kv_heads, dim) -> None:
    """Where this CPU has no AMX, the tile registers are emulated."""
    case, grad = attention_case(heads, kv_heads, dim, (33, 1, 64))
    results = []
    for on_tiles in (0, 1):
        monkeypatch.setattr(ops, "_attention_on_tiles", lambda _, chosen=on_tiles: chosen)
        out, logsumexp = ops.attention(*case)
        results.append(
            [out, logsumexp.T, *ops.attention_backward(*case, out, logsumexp, grad)],
        )
    for found, wanted in zip(*results, strict=True):  # but for the order of a sum in float32
        assert_rows_close(found, wanted, 8e-3, floor=dim**0.5)


def test_attention_of_large_scores_does_not_overflow(compiled) -> None:
    case, grad = attention_case(4, 2, 64, (70, 3), size=40.0)  # scores of +-10^4
    out, logsumexp = ops.attention(*case)
    assert out.isfinite().all()
    assert logsumexp.isfinite().all()
    # Each query sees its best key alone; q and k in bf16 after the turn decide near ties otherwise.
    wanted, _ = ops.attention(*widened(case))
    errors = (out.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert errors.median() < 1e-2
    assert all(x.isfinite().all() for x in ops.attention_backward(*case, out, logsumexp, grad))


def test_attention_does_not_hide_a_nan(compiled) -> None:
    (q, *case), grad = attention_case(4, 2, 64, (70, 3))
    q[5, 0, 9] = math.nan
    out, logsumexp = ops.attention(q, *case)
    assert not out.isfinite().all()
    assert out[:, 1:].isfinite().all()  # the other heads
    for gradient in ops.attention_backward(q, *case, out, logsumexp, grad):
        assert not gradient.isfinite().all()


def test_log_sums_are_those_of_the_scores(compiled) -> None:
    case, _ = attention_case(4, 2, 64, (37, 64))
    q, k, _, cos, sin, bounds, _, scale = widened(case)
    cos, sin = cos[:, None], sin[:, None]
    q, k = (x * cos + ops._rotate_half(x) * sin for x in (q, k))
    for start, end in pairwise(bounds.tolist()):
        own = k[start:end].repeat_interleave(2, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[start:end], own) * scale
        hidden = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        wanted = scores.masked_fill(hidden, -math.inf).logsumexp(-1)
        found = ops.attention(*case)[1][:, start:end]
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_attention_that_aligns_queries_otherwise_is_found(compiled, monkeypatch) -> None:
    assert ops.why_no_chains(torch.device("cpu")) is None
    exact = ops.attention

    def without_parents(q, k, v, cos, sin, bounds, parents, scale):
        parents = parents if q.dtype == torch.float32 else None
        return exact(q, k, v, cos, sin, bounds, parents, scale)

    monkeypatch.setattr(ops, "attention", without_parents)
    assert "not exact" in ops.why_no_chains(torch.device("cpu"))


def test_a_branch_does_not_see_another(compiled) -> None:
    case, grad = attention_case(4, 2, 64, FOREST[0], parents=FOREST[1])
    out, logsumexp = ops.attention(*case)
    grad_q = ops.attention_backward(*case, out, logsumexp, grad)[0]
    moved = [x.clone() if torch.is_tensor(x) else x for x in case]
    changed = [*range(40, 138)]  # a segment, and the two that follow it
    for x in moved[:3]:
        x[40:73] = half(*x[40:73].shape, size=5)
    other, other_sums = ops.attention(*moved)
    same = [token for token in range(len(out)) if token not in changed]
    assert torch.equal(out[same], other[same])
    assert (out[changed] != other[changed]).flatten(1).any(1).all()
    other_grad = ops.attention_backward(*moved, other, other_sums, grad)[0]
    assert torch.equal(grad_q[same], other_grad[same])


def test_attention_of_a_branch_is_bit_for_bit_that_of_its_sequence_alone(compiled) -> None:
    case, _ = attention_case(4, 2, 64, FOREST[0], parents=FOREST[1])
    bounds = case[5].tolist()
    out, logsumexp = ops.attention(*case)
    for segments in ((0, 1, 2), (0, 1, 3), (0, 4), (5,)):
        places = torch.cat([torch.arange(bounds[one], bounds[one + 1]) for one in segments])
        sequence = [x[places].contiguous() for x in case[:5]]
        alone, sums = ops.attention(*sequence, torch.tensor([0, len(places)]), None, case[-1])
        assert torch.equal(out[places], alone)
        assert torch.equal(logsumexp[:, places], sums)


def test_segments_do_not_see_each_other(compiled) -> None:
    case, grad = attention_case(4, 2, 64, (33, 64, 5))
    out, logsumexp = ops.attention(*case)
    gradients = ops.attention_backward(*case, out, logsumexp, grad)
    moved = [x.clone() if torch.is_tensor(x) else x for x in case]
    for x in moved[:3]:
        x[33:97] = half(*x[33:97].shape, size=5)
    other, other_sums = ops.attention(*moved)
    rest = [*range(33), *range(97, 102)]
    assert torch.equal(out[rest], other[rest])
    assert not torch.equal(out[33:97], other[33:97])
    others = ops.attention_backward(*moved, other, other_sums, grad)
    for one, two in zip(gradients, others, strict=True):
        assert torch.equal(one[rest], two[rest])


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("vocabulary", [7, 1031])
def test_cross_entropy_and_its_gradient(compiled, rows, size, vocabulary) -> None:
    logits, targets = half(rows, vocabulary, size=size), torch.randint(vocabulary, (rows,))
    targets[2::3] = -100
    gradient, wanted = logits.clone(), logits.float()
    losses, expected = ops.cross_entropy(gradient, targets), ops.cross_entropy(wanted, targets)
    assert losses.isfinite().all()
    assert not losses[2::3].any()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.float(), wanted, rtol=5e-3, atol=1e-6)
    assert not gradient[2::3].any()


def test_a_forbidden_token_has_no_share_and_a_nan_is_not_hidden(compiled) -> None:
    logits, targets = half(2, 40), torch.tensor([3, 5])
    logits[:, 7] = -math.inf
    gradient = logits.clone()
    assert ops.cross_entropy(gradient, targets).isfinite().all()
    assert gradient[:, 7].abs().max() < 1e-30
    logits[1, 9] = math.nan
    assert ops.cross_entropy(logits, targets).isfinite().tolist() == [True, False]


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("size", [5, 80, 897])
@pytest.mark.parametrize("with_columns", [False, True])
def test_quantize_and_scale_rows(compiled, rows, size, with_columns) -> None:
    x = half(rows, size, size=3)
    x[-1] = 0
    columns = torch.rand(size) + 0.5 if with_columns else None
    values, scales = ops.quantize(x, columns)
    wanted, wanted_scales = ops.quantize(x.float(), columns)
    assert not ops.quantize(x.index_fill(1, torch.tensor(0), math.nan), columns)[1].isfinite().any()
    torch.testing.assert_close(scales, wanted_scales)
    assert values.dtype == torch.uint8
    assert (values.int() - wanted.int()).abs().max() <= 1  # a tie may fall the other way
    assert (values != wanted).float().mean() < 0.01
    assert (values[-1] == 128).all()
    if rows > 1:
        assert ((values[:-1].int() - 128).abs().amax(-1) == 127).all()

    for residual in (None, half(rows, size, size=1e5)):
        out = half(rows, size, size=1e4)
        wide = None if residual is None else residual.float()
        wanted = ops.scale_rows(out.float(), scales, wide)
        assert ops.scale_rows(out, scales, residual) is out
        torch.testing.assert_close(out.float(), wanted, rtol=5e-3, atol=1e-2)


def test_the_number_of_threads_changes_nothing(compiled) -> None:
    case, grad = attention_case(6, 2, 64, FOREST[0], parents=FOREST[1])
    logits, targets = half(50, 301), torch.randint(301, (50,))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out, logsumexp = ops.attention(*case)
        gradient = logits.clone()
        losses = ops.cross_entropy(gradient, targets)
        results.append([out, *ops.attention_backward(*case, out, logsumexp, grad), gradient])
        results[-1].append(losses)
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_float32_does_not_go_to_the_kernels_and_bf16_does(compiled, monkeypatch) -> None:
    called = []
    call = ops.call
    monkeypatch.setattr(ops, "call", lambda name, *a, **k: called.append(name) or call(name, *a))
    x = half(3, 64)
    ops.swiglu(x.float(), x.float())
    assert not called
    ops.swiglu(x, x)
    assert called == ["swiglu"]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.quantize(x.T),
        lambda x: ops.scale_rows(x, torch.ones(4), x[:1].expand(4, 4)),
        lambda x: ops.swiglu(x[:, :2], x[:, 2:]),
        lambda x: ops.dropout(x, 0.5, 1, accumulate_into=x.T),
    ],
)
def test_a_tensor_of_other_strides_never_reaches_a_kernel(monkeypatch, call) -> None:
    reached = []
    names = ("quantize", "scale_rows", "swiglu", "dropout")
    library = SimpleNamespace(**{name: lambda *given: reached.append(given) for name in names})
    monkeypatch.setattr(ops, "kernels", lambda: Kernels(library, "made up"))
    ops.quantize(half(4, 4))
    assert len(reached) == 1
    with pytest.raises(ValueError, match="strides"):
        call(half(4, 4))
    assert len(reached) == 1


def test_bf16_without_the_library_is_the_formula(only_torch) -> None:
    x, weight = half(3, 64), half(64)
    assert_rows_close(
        ops.rms_norm(x, weight, 1e-5), ops.rms_norm(x.float(), weight.float(), 1e-5), 6e-3
    )
    case, grad = attention_case(4, 2, 64, (5, 40))
    out, logsumexp = ops.attention(*case)
    wanted, _ = ops.attention(*widened(case))
    assert out.dtype == torch.bfloat16
    assert_rows_close(out, wanted, 2e-2)
    found = ops.attention_backward(*case, out, logsumexp, grad)
    known = ops.attention_backward(*widened(case), wanted, logsumexp, grad.float())
    for one, other in zip(found, known, strict=True):
        assert_rows_close(one, other, 5e-2, floor=0.1 * 8)


# -- the formulas against autograd -----------------------------------------------------------------


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_the_gradient_formulas_are_autograds(rows) -> None:
    x, weight, grad = leaf(rows, 80), torch.randn(80), torch.randn(rows, 80)
    F.rms_norm(x, (80,), weight, 1e-5).backward(grad)
    plain = x.detach()
    torch.testing.assert_close(
        ops.rms_norm(plain, weight, 1e-5), F.rms_norm(plain, (80,), weight, 1e-5)
    )
    found = ops.rms_norm_backward(plain, weight, grad, 1e-5)
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-5)
    residual = torch.randn(rows, 80)
    found = ops.rms_norm_backward(plain, weight, grad, 1e-5, residual=residual)
    torch.testing.assert_close(found, x.grad + residual, rtol=1e-4, atol=1e-5)

    gate, up = leaf(rows, 80), leaf(rows, 80)
    out = F.silu(gate) * up
    out.backward(grad)
    found = ops.swiglu_backward(gate.detach(), up.detach(), grad)
    for one, other in zip(found, (gate.grad, up.grad, out.detach()), strict=True):
        torch.testing.assert_close(one, other)

    logits, targets = leaf(rows, 80), torch.randint(80, (rows,))
    targets[2::3] = -100
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    loss.backward()
    buffer = logits.detach().clone()
    assert ops.cross_entropy(buffer, targets).sum().item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(buffer, logits.grad)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 80), (6, 1, 128)])
@pytest.mark.parametrize(("segments", "parents"), [((1, 63, 20), None), FOREST])
def test_attention_in_float32_is_autograds_of_a_masked_softmax(
    heads, kv_heads, dim, segments, parents
) -> None:
    case, grad = attention_case(heads, kv_heads, dim, segments, parents=parents)
    q, k, v, cos, sin, bounds, chains, scale = widened(case)
    grad = grad.float()
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    turn = torch.complex(cos.double(), sin.double())[:, None, : dim // 2]

    def turned(x):
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    own_q, own_k, own_v = turned(leaves[0]), turned(leaves[1]), leaves[2]
    own_k, own_v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (own_k, own_v))
    segment = torch.searchsorted(bounds, torch.arange(len(q)), right=True) - 1
    seen = (segment[:, None] == segment).tril()
    for index in range(len(parents or ())):
        above = parents[index]
        while above >= 0:
            seen |= (segment == index)[:, None] & (segment == above)
            above = parents[above]
    scores = torch.einsum("qhd,khd->hqk", own_q, own_k) * scale
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    wanted = torch.einsum("hqk,khd->qhd", weights, own_v)
    wanted.backward(grad.double())
    out, logsumexp = ops.attention(q, k, v, cos, sin, bounds, chains, scale)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)
    inputs = q, k, v, cos, sin, bounds, chains, scale
    found = ops.attention_backward(*inputs, out, logsumexp, grad)
    for one, other in zip(found, leaves, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one.double(), other.grad, rtol=1e-4, atol=1e-5)


# -- how the library comes to be -------------------------------------------------------------------


def rebuilt(monkeypatch, **environment) -> Kernels:
    """`kernels` anew, past its own cache."""
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return kernels.__wrapped__()


def test_the_environment_can_switch_them_off(monkeypatch) -> None:
    found = rebuilt(monkeypatch, INTEL_FT_NO_KERNELS="1")
    assert found == Kernels(None, "INTEL_FT_NO_KERNELS is set")


def able(monkeypatch) -> None:
    for name in (build.DISABLE, "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"avx512_bf16"}))


def test_a_cpu_without_bf16_has_none(monkeypatch) -> None:
    able(monkeypatch)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"avx512f"}))
    assert rebuilt(monkeypatch) == Kernels(None, "this CPU has no bf16 instructions")


@pytest.mark.parametrize("value", ["AVX2", "avx512_core", "AVX2_VNNI_2"])
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_of_onednns_instructions_leaves_none(monkeypatch, tmp_path, name, value) -> None:
    able(monkeypatch)
    found = rebuilt(monkeypatch, CXX="/bin/false", PATH=tmp_path, **{name: value})
    assert found == Kernels(None, f"{name}={value} disables bf16 instructions")
    found = rebuilt(monkeypatch, **{name: "AVX512_CORE_BF16"})
    assert found.reason.startswith("/bin/false failed")


def test_no_compiler_says_what_to_install(monkeypatch, tmp_path) -> None:
    able(monkeypatch)
    monkeypatch.delenv("CXX", raising=False)
    found = rebuilt(monkeypatch, PATH=tmp_path)
    assert found.library is None
    assert "install g++" in found.reason


def test_a_compiler_that_fails_is_a_line(monkeypatch, tmp_path) -> None:
    able(monkeypatch)
    found = rebuilt(monkeypatch, CXX="/bin/false", PATH=tmp_path, XDG_CACHE_HOME=tmp_path)
    assert found.library is None
    assert found.reason.startswith("/bin/false failed: ")
    assert "\n" not in found.reason


def test_the_next_compiler_is_tried(compiled, monkeypatch, tmp_path) -> None:
    found = rebuilt(monkeypatch, CXX="/bin/false -x", XDG_CACHE_HOME=tmp_path)
    assert found.library is not None
    assert "/bin/false" not in found.reason


def test_an_error_while_compiling_is_its_last_line(monkeypatch, tmp_path) -> None:
    able(monkeypatch)
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\necho first >&2\necho "the error" >&2\nexit 1\n'
    )
    compiler.chmod(stat.S_IRWXU)
    cache = tmp_path / "cache"
    found = rebuilt(monkeypatch, CXX=compiler, PATH="/nowhere", XDG_CACHE_HOME=cache)
    assert found == Kernels(None, f"{compiler} failed: the error")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path) -> None:
    able(monkeypatch)
    (tmp_path / "file").touch()
    found = rebuilt(monkeypatch, CXX="/bin/true", XDG_CACHE_HOME=tmp_path / "file")
    assert found.library is None
    assert "\n" not in found.reason


LOAD = """
import torch
from intel_ft.kernels.build import kernels
assert kernels().library is not None, kernels().reason
assert (torch.tensor([1e-40]) * 1.0).item() > 0, "loading it switched denormal numbers off"
"""


def test_a_second_process_loads_what_the_first_compiled(compiled, tmp_path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}

    def start() -> tuple[Path, int]:
        subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True, timeout=300)
        (path,) = (tmp_path / "intel_ft").iterdir()
        return path, path.stat().st_mtime_ns

    assert start() == start()


# -- dequantized weights of an IR ------------------------------------------------------------------


@pytest.mark.parametrize(
    "bits, signed, zeros", [(4, False, True), (4, True, False), (8, False, True)]
)
@pytest.mark.parametrize("groups, group", [(3, 64), (1, 50), (2, 128)])
def test_dequantized_weights(compiled, monkeypatch, bits, signed, zeros, groups, group) -> None:
    rows, size = 5, groups * group
    codes = torch.randint(0, 256, (rows * size * bits // 8,), dtype=torch.uint8)
    scales = (torch.rand(rows, groups) / 10).half()
    zero = torch.randint(0, 16, (rows, groups), dtype=torch.uint8) if zeros else None
    arguments = {"bits": bits, "signed": signed, "dtype": torch.bfloat16}
    found = ops.dequantize(codes, scales, zero, (rows, size), **arguments)
    values = codes.tolist()
    if bits == 4:
        values = [half for byte in values for half in (byte & 15, byte >> 4)]
    if signed:
        values = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in values]
    wanted = torch.tensor(values, dtype=torch.float32).view(rows, groups, group)
    wanted = (wanted - (0 if zero is None else zero[..., None].float())) * scales[..., None].float()
    assert found.equal(wanted.view(rows, size).bfloat16())
    exact = ops.dequantize(
        codes, scales, zero, (rows, size), **arguments | {"dtype": torch.float32}
    )
    assert exact.equal(wanted.view(rows, size))
    monkeypatch.setattr(ops, "kernels", lambda: Kernels(None, "switched off by a test"))
    assert ops.dequantize(codes, scales, zero, (rows, size), **arguments).equal(found)
