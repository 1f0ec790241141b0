"""Attention over packed rows in bf16: the compiled kernel against torch's attention by segment."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from intel_ft.kernels import ops
from intel_ft.layers import packed_attention as module
from intel_ft.layers.packed_attention import SegmentAttention, packed_attention

LENGTHS, DIM = (5, 70, 1, 33), 24
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)


def inputs(dtype, heads: int = 4, kv_heads: int = 2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), DIM) for count in (heads, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [x.to(dtype).requires_grad_(True) for x in drawn]


def attend(dtype, **settings):
    """The output and the gradients of query, key and value."""
    leaves = inputs(dtype)
    out, _ = packed_attention(None, *leaves, None, cu_seq_lens_q=BOUNDS, **settings)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return out, *torch.autograd.grad(out, leaves, grad)


def compiles(dtype) -> bool:
    return ops.compiled(torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("settings", [{}, {"scaling": 0.3}, {"sliding_window": 70}])
def test_the_compiled_attention_is_that_of_float32_to_rounding(settings, monkeypatch) -> None:
    calls = []
    apply = SegmentAttention.apply
    monkeypatch.setattr(SegmentAttention, "apply", lambda *a: calls.append(1) or apply(*a))
    expected = attend(torch.float32, **settings)
    assert not calls
    found = attend(torch.bfloat16, **settings)
    assert bool(calls) == compiles(torch.bfloat16)
    for one, other in zip(expected, found, strict=True):
        assert (one - other.float()).norm() < 0.01 * one.norm()


@pytest.mark.parametrize(
    "settings", [{"sliding_window": 8}, {"softcap": 3.0}, {"s_aux": torch.tensor([0.5, 2, -1, 0])}]
)
def test_other_attention_stays_with_torch(settings, monkeypatch) -> None:
    monkeypatch.setattr(SegmentAttention, "apply", None)
    expected = attend(torch.float32, **settings)
    for one, other in zip(expected, attend(torch.bfloat16, **settings), strict=True):
        assert (one - other.float()).norm() < 0.02 * one.norm()


def test_float32_is_torchs_attention_of_each_segment() -> None:
    leaves = inputs(torch.float32)
    found = attend(torch.float32)
    q, k, v = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in leaves)
    parts = [
        F.scaled_dot_product_attention(*(x[:, :, a:b] for x in (q, k, v)), is_causal=True)
        for a, b in pairwise(BOUNDS)
    ]
    out = torch.cat(parts, dim=2).transpose(1, 2)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip((out, *torch.autograd.grad(out, leaves, grad)), found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "flags", "multiple"),
    [("cpu", {"avx512f"}, 32), ("cpu", {"avx512f", "amx_bf16"}, 128), ("cuda", {"avx512f"}, 128)],
)
def test_rows_are_padded_less_where_a_kernel_for_a_new_length_is_quick(
    device, flags, multiple, monkeypatch
) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    assert module.row_multiple.__wrapped__(device) == multiple
    assert module.padded_length(multiple + 1, multiple) == 2 * multiple
