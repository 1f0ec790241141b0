"""Our own products against exact ones; which of them a process can use; the CPU's own rates.

Where this CPU has no AMX, the tile registers are emulated: packing and blocking are the same.
"""

import ctypes
import math

import pytest
import torch

from intel_ft.host import amx, cpu
from intel_ft.kernels import ops
from intel_ft.kernels.build import Kernels
from intel_ft.kernels.gemm import library, narrow, register_rate, tiles, vnni

SHAPES = [(1, 7, 5), (33, 70, 200), (130, 300, 96), (33, 30, 1000)]  # rows, columns, inner


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    library.why_no_tiles()  # asks Linux for the tiles, without which a product is killed
    found = library.library()
    if found.library is None or not hasattr(found.library, "tile_multiply"):
        pytest.skip(f"no products with AVX-512 here: {found.reason}")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Several blocks each way, and several chunks, in small matrices."""
    monkeypatch.setattr(tiles, "_blocking", lambda: (2, 1, 2))


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def whole(*shape: int) -> torch.Tensor:
    """Whole numbers that int8 and bf16 hold exactly; each row has 127, so that its scale is 1."""
    values = torch.randint(-127, 128, shape)
    values[:, 0] = 127
    return values


def assert_rounded_once(found: torch.Tensor, exact: torch.Tensor, summands: torch.Tensor) -> None:
    """As near to `exact` as bf16 and sums in float32 of these absolute values allow."""
    assert found.dtype == torch.bfloat16
    error = (found.double() - exact).abs()
    assert (error <= exact.abs() / 256 + 1e-6 * summands + 1e-30).all(), error.max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_bf16_tiles_multiply_to_one_rounding(small_blocks, shape, transposed) -> None:
    rows, columns, inner = shape
    x, w = half(rows, inner), half(columns, inner)
    bias, residual, left, right = (
        half(columns),
        half(rows, columns),
        half(rows, 3),
        half(columns, 3),
    )
    matrix = tiles.pack(w.T.contiguous().T if transposed else w)
    exact, summands = (
        a @ b.T for a, b in ((x.double(), w.double()), (x.abs().double(), w.abs().double()))
    )
    assert_rounded_once(tiles.multiply(tiles.pack_rows(x), matrix), exact, summands)
    exact += bias.double() + residual.double() + left.double() @ right.double().T
    found = tiles.multiply(
        tiles.pack_rows(x),
        matrix,
        bias=bias,
        residual=residual,
        low_rank=(left, right),
        out=residual,
    )
    assert found is residual
    assert_rounded_once(found, exact, summands + 20)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_tiles_multiply_exactly(small_blocks, shape) -> None:
    rows, columns, inner = shape
    x, w = whole(rows, inner), whole(columns, inner)
    packed = tiles.quantize_rows(x.bfloat16())
    assert torch.equal(packed.scales, torch.ones(rows))
    exact = (x @ w.T).float()
    matrix = tiles.pack(w.to(torch.int8), torch.ones(columns))
    assert torch.equal(tiles.multiply(packed, matrix), exact.bfloat16())
    scales, residual, left, right = (
        torch.rand(columns),
        half(rows, columns),
        half(rows, 40),
        half(columns, 40),
    )
    matrix = tiles.pack(w.T.to(torch.int8).contiguous().T, scales)
    found = tiles.multiply(packed, matrix, residual=residual, low_rank=(left, right))
    wanted = exact.double() * scales.double() + residual.double() + left.double() @ right.double().T
    assert_rounded_once(found, wanted, exact.abs().double() + 100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (200, 130, 2100)])
def test_vnni_multiplies_exactly(dtype, shape) -> None:
    if library.why_no_vnni() is not None:
        pytest.skip(library.why_no_vnni())
    rows, columns, inner = shape
    x, w = whole(rows, inner), whole(columns, inner)
    packed = vnni.quantize_rows(x.to(dtype))
    assert torch.equal(packed.scales, torch.ones(rows))
    assert torch.equal(packed.values[:rows, :inner].long() - 128, x)
    exact = (x @ w.T).double()
    matrix = vnni.pack(w.to(torch.int8), torch.ones(columns))
    found = vnni.multiply(packed, matrix)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    scales = torch.rand(columns)
    bias, residual = torch.randn(columns).to(dtype), torch.randn(rows, columns).to(dtype)
    matrix = vnni.pack(w.T.to(torch.int8).contiguous().T, scales)
    found = vnni.multiply(packed, matrix, bias=bias, residual=residual)
    wanted = exact * scales.double() + bias.double() + residual.double()
    torch.testing.assert_close(
        found.double(), wanted, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
    )
    w = w.T.to(torch.int8)  # whose transpose is the matrix
    transpose = vnni.Transpose(vnni.pack(w, torch.rand(inner)), vnni.transpose_shifts(w))
    assert (transpose.columns, transpose.inner) == (columns, inner)
    assert torch.equal(vnni.multiply(packed, transpose), exact.to(dtype))


@pytest.mark.parametrize("quantize_rows", [tiles.quantize_rows, vnni.quantize_rows])
def test_rows_are_quantized_with_their_columns_scales(quantize_rows) -> None:
    module = tiles if quantize_rows is tiles.quantize_rows else vnni
    if module is vnni and library.why_no_vnni() is not None:
        pytest.skip(library.why_no_vnni())
    x, columns = half(20, 100), torch.rand(100) + 0.5
    x[3] = 0
    packed = quantize_rows(x, columns)
    wide = x.float() * columns
    torch.testing.assert_close(packed.scales, wide.abs().amax(-1) / 127)
    identity = module.pack(torch.eye(100).to(torch.int8), torch.ones(100))
    found = module.multiply(packed, identity).float()
    bound = packed.scales[:, None] * 0.51 + wide.abs() / 256
    assert ((found - wide).abs() <= bound).all()
    assert not found[3].any()
    x[5, 7] = math.nan
    found = module.multiply(quantize_rows(x, columns), identity)
    assert found.isfinite().all(-1).tolist() == [row != 5 for row in range(20)]


@pytest.mark.parametrize("kind", ["norm", "up"])
@pytest.mark.parametrize("shape", [(1, 5), (70, 300), (33, 1100)])
def test_one_pass_computes_packs_and_multiplies(kind, shape) -> None:
    (rows, inner), x, other = shape, half(*shape), half(*shape)
    source = tiles.Activations(x, norm=other[0], eps=1e-3)
    plain = ops.rms_norm(x, other[0], 1e-3)
    if kind == "up":
        source, plain = tiles.Activations(x, up=other), ops.swiglu(x, other)
    rights = [tiles.pack(half(rank, inner)) for rank in (4, 40)]
    columns = torch.rand(inner) + 0.5
    for found, wanted in (
        (tiles.bf16_rows(source, rights), tiles.pack_rows(plain)),
        (tiles.int8_rows(source, rights, columns), tiles.quantize_rows(plain, columns)),
    ):
        packed, products = found
        assert torch.equal(packed.panels, wanted.panels)
        assert packed.scales is None or torch.equal(packed.scales, wanted.scales)
        for product, right in zip(products, rights, strict=True):
            assert torch.equal(product, narrow.multiply(plain, right))
    with pytest.raises(ValueError, match="times a tensor of"):
        tiles.bf16_rows(tiles.Activations(x, up=half(rows, inner + 1)))


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (34, 1031), (70, 64)])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_the_gradient_of_cross_entropy_in_panels(rows, vocabulary, size) -> None:
    logits, targets = half(rows, vocabulary) * size, torch.randint(vocabulary, (rows,))
    targets[2::3] = -100
    gradient = logits.float()
    expected = ops.cross_entropy(gradient, targets)
    losses, panels = tiles.cross_entropy(logits, targets)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    lines = panels.panels.view(torch.bfloat16).view(-(-rows // 32), -1, 2, 16, 32)
    found = lines.permute(0, 2, 3, 1, 4).reshape(len(lines) * 32, -1)
    torch.testing.assert_close(found[:rows, :vocabulary].float(), gradient, rtol=5e-3, atol=1e-6)
    assert not found[rows:].any() and not found[:, vocabulary:].any()
    logits[0, 3] = math.nan
    assert tiles.cross_entropy(logits, targets)[0][0].isnan()


@pytest.mark.parametrize("shape", [(1, 5, 7), (33, 200, 16), (300, 1100, 40)])
def test_loras_products_are_rounded_once(shape) -> None:
    rows, inner, rank = shape
    x, left = half(rows, inner), half(rows, rank)
    a, b = torch.randn(rank, inner), torch.randn(inner, rank)
    _, packed = narrow.pack_loras([(b[:3].T, a[:, :4].T, 2.0), (a, b, 0.3)])
    for found, right in (
        (narrow.multiply(x, packed.a), a.bfloat16()),
        (narrow.multiply(x, packed.b_transposed), (b * 0.3).bfloat16().T),
    ):
        wide = right.double()
        summands = x.abs().double() @ wide.abs().T
        assert_rounded_once(found, x.double() @ wide.T, summands)
    exact, summands = left.double().T @ x.double(), left.abs().double().T @ x.abs().double()
    one, other = narrow.gradients(
        [narrow.Gradient(left, x, 0.5), narrow.Gradient(left, x, 0.5, transposed=True)]
    )
    for found in (one, other.T):
        assert found.dtype == torch.float32
        assert ((found.double() - 0.5 * exact).abs() <= 1e-6 * summands + 1e-30).all()
    # What the two others add to a product.
    zeros, w = tiles.pack_rows(torch.zeros(rows, 32).bfloat16()), tiles.pack(half(inner, 32))
    for matrix, right in ((packed.b, (b * 0.3).bfloat16()), (packed.a_transposed, a.bfloat16().T)):
        added = tiles.multiply(zeros, w, low_rank=(left, matrix))
        wide = right.double()
        summands = left.abs().double() @ wide.abs().T
        assert_rounded_once(added, left.double() @ wide.T, summands)


@pytest.mark.parametrize(
    ("bits", "signed", "zeros"),
    [(4, False, True), (4, True, False), (8, False, True), (8, True, False)],
)
@pytest.mark.parametrize(
    ("rows", "groups", "group"), [(70, 3, 64), (33, 2, 32), (31, 1, 50), (64, 2, 48), (1, 5, 2)]
)
def test_codes_of_an_ir_become_the_panels_of_their_weights(
    bits, signed, zeros, rows, groups, group
) -> None:
    shape = rows, groups * group
    codes = torch.randint(0, 256, (rows * groups * group * bits // 8 + 3,), dtype=torch.uint8)[3:]
    scales = (torch.rand(rows, groups) / 10).half()
    zero = torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8) if zeros else None
    weight = ops.dequantize(
        codes, scales, zero, shape, bits=bits, signed=signed, dtype=torch.bfloat16
    )
    for transposed in (False, True):
        matrix = tiles.CompressedMatrix(codes, scales, zero, shape, bits, signed, transposed)
        found, wanted = tiles.dequantize(matrix), tiles.pack(weight.T if transposed else weight)
        assert found.panels.equal(wanted.panels)
        assert (found.columns, found.inner) == (wanted.columns, wanted.inner)
        x = tiles.pack_rows(half(3, wanted.inner))
        assert tiles.multiply(x, matrix).equal(tiles.multiply(x, wanted))


def test_operands_that_do_not_fit_are_refused() -> None:
    x, matrix = tiles.pack_rows(half(4, 32)), tiles.pack(half(8, 32))
    with pytest.raises(ValueError, match="4 rows of 32 times a matrix of 64"):
        tiles.multiply(x, tiles.pack(half(8, 64)))
    with pytest.raises(ValueError, match="4 rows"):  # one is int8
        tiles.multiply(x, tiles.pack(torch.ones(8, 32, dtype=torch.int8), torch.ones(8)))
    with pytest.raises(ValueError, match="4 rows of 32 times a matrix of 64"):
        narrow.multiply(half(4, 32), tiles.pack(half(8, 64)))
    with pytest.raises(ValueError, match="4 rows times 5 rows"):
        narrow.gradients([narrow.Gradient(half(4, 8), half(5, 8))])
    with pytest.raises(ValueError, match="contiguous"):
        tiles.multiply(x, matrix, residual=half(8, 4).T)


@pytest.mark.parametrize("blocks", [(2, 1, 2), (1, 8, 2), (3, 4, 9)])
def test_neither_threads_nor_blocks_change_anything(monkeypatch, blocks) -> None:
    """More threads than strips of columns: these get narrower towards the end."""
    x, w = half(100, 96), half(700, 96)
    monkeypatch.setattr(tiles, "_blocking", lambda: blocks)
    results, before = [], torch.get_num_threads()
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        results.append(tiles.multiply(tiles.pack_rows(x), tiles.pack(w)))
    torch.set_num_threads(before)
    assert_rounded_once(
        results[0], x.double() @ w.double().T, x.abs().double() @ w.abs().double().T
    )
    assert all(torch.equal(results[0], other) for other in results[1:])


# -- which of them a process can use ---------------------------------------------------------------

AMX = {"amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx512bw", "avx512vl"}


@pytest.fixture
def amx_host(monkeypatch):
    """A CPU with AMX whose tiles work; returns the reason without a cached one."""
    monkeypatch.setattr(library, "cpu_flags", lambda: AMX | {"avx512_vnni"})
    monkeypatch.setattr(library, "tile_permission", lambda: "granted")
    monkeypatch.setattr(library, "call", lambda *_, **__: 1)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    return library.why_no_tiles.__wrapped__


def test_tiles_are_used_where_they_work(amx_host, monkeypatch) -> None:
    assert amx_host() is None
    monkeypatch.setattr(library, "call", lambda *_, **__: 0)
    assert amx_host() == "a trial of AMX tiles failed"
    failed = Kernels(None, "c++ failed: unknown option")
    monkeypatch.setattr(library, "library", lambda: failed)
    assert amx_host() == failed.reason
    monkeypatch.setattr(library, "tile_permission", lambda: "Operation not permitted")
    assert amx_host() == "Linux does not permit AMX tiles (Operation not permitted)"
    monkeypatch.setattr(library, "cpu_flags", lambda: AMX - {"amx_int8"})
    assert amx_host() == "this CPU has no AMX"


@pytest.mark.parametrize(
    ("value", "no_tiles", "no_vnni"),
    [
        ("AVX512_CORE_AMX", False, False),
        ("all", False, False),
        ("AVX512_CORE_BF16", True, False),
        ("AVX2_VNNI", True, True),
    ],
)
def test_a_limit_of_onednns_instructions_counts(
    amx_host, monkeypatch, value, no_tiles, no_vnni
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    disabled = f"ONEDNN_MAX_CPU_ISA={value} disables "
    assert amx_host() == (f"{disabled}AMX" if no_tiles else None)
    assert library.why_no_vnni.__wrapped__() == (f"{disabled}AVX512-VNNI" if no_vnni else None)


def test_without_tiles_of_its_own_a_library_says_that_they_do_not_work() -> None:
    works = library.call("tiles_work", returns=ctypes.c_int, threads=False)
    if amx.tile_permission() != "granted" or "amx_tile" not in cpu.cpu_flags():
        assert works == 0


def test_the_environment_can_switch_them_off(monkeypatch) -> None:
    monkeypatch.setenv("INTEL_FT_NO_KERNELS", "1")
    assert library.library.__wrapped__() == Kernels(None, "INTEL_FT_NO_KERNELS is set")


# -- the CPU's own rates ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_register_rate_is_that_of_the_cpus_instruction(dtype) -> None:
    found = register_rate.register_rate(dtype, 0.004)
    name = register_rate.instruction_of(dtype)
    if name is None:
        assert found is None
    else:
        assert found.instruction == name
        assert found.rate > 1e9


@pytest.mark.parametrize(
    ("flags", "bf16", "int8", "float32"),
    [
        ({"fma"}, None, None, "vfmadd (256 bits)"),
        ({"fma", "avx_vnni"}, None, "vpdpbusd (256 bits)", "vfmadd (256 bits)"),
        ({"fma", "avx512f", "avx512_vnni"}, None, "vpdpbusd", "vfmadd"),
        (AMX | {"avx512_vnni"}, "tdpbf16ps", "tdpbssd", "vfmadd"),
    ],
)
def test_the_instruction_of_a_dtype_follows_the_flags(
    monkeypatch, flags, bf16, int8, float32
) -> None:
    monkeypatch.setattr(register_rate.cpu, "cpu_flags", lambda: flags)
    monkeypatch.setattr(register_rate, "why_no_tiles", lambda: None)
    names = [register_rate.instruction_of(t) for t in (torch.bfloat16, torch.int8, torch.float32)]
    assert names == [bf16, int8, float32]
    if bf16 == "tdpbf16ps":  # a container may forbid tiles
        monkeypatch.setattr(register_rate, "why_no_tiles", lambda: "forbidden")
        assert register_rate.instruction_of(torch.bfloat16) == "vdpbf16ps"


@pytest.mark.parametrize(("size", "found"), [("2048K", 2 * 2**20), ("2M", 0), (None, 0)])
def test_a_block_is_as_large_as_the_reported_cache_allows(tmp_path, size, found) -> None:
    for index, (level, kind) in enumerate((("1", "Data"), ("2", "Instruction"), ("2", "Unified"))):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        texts = {"level": level, "type": kind, "size": size if kind == "Unified" else "32K"}
        for name, text in texts.items():
            if text is not None:
                (folder / name).write_text(f"{text}\n")
    assert cpu.cache_bytes(2, tmp_path) == found
