"""Frozen weights that processes map: equal bit for bit, shared, and known to be undamaged."""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from intel_ft.host import cpu
from intel_ft.kernels.gemm.library import why_no_vnni
from intel_ft.kernels.grouped import Int8Matrices, Int8Tiles
from intel_ft.layers import mapped
from intel_ft.layers.int8 import int8_base
from intel_ft.layers.mapped import Reader, Writer
from intel_ft.layers.nf4 import nf4_base
from intel_ft.layers.own_products import tile_base, tile_int8_base, vnni_base
from intel_ft.layers.prepacked import can_prepack, prepacked_base

FACTS = {"layout": "any", "sizes": [1, 2]}
HAS_VNNI = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu.cpu_flags())
HAS_AVX512 = "avx512f" in cpu.cpu_flags()
LAYOUTS = {
    tile_base: HAS_AVX512,
    tile_int8_base: HAS_AVX512,
    vnni_base: why_no_vnni() is None,
    prepacked_base: can_prepack(torch.bfloat16),
    int8_base: HAS_VNNI,
    nf4_base: True,
}


def unmade():
    raise AssertionError("it is in the file")


@pytest.fixture
def path():
    """A file in memory, as a path that any process of this user can open."""
    descriptor = os.memfd_create("test")
    os.fchmod(descriptor, 0o600)
    yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    os.close(descriptor)


def written(path, verifiable=False, **values):
    writer = Writer(int(path.name), FACTS)
    kept = {name: writer(name, lambda value=value: value) for name, value in values.items()}
    assert writer.failed is None
    writer.finish(verifiable=verifiable)
    return kept


@pytest.mark.parametrize("factory", LAYOUTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_mapped_weight_multiplies_bit_for_bit_as_the_one_it_was_made_of(
    factory, with_bias, path
) -> None:
    if not LAYOUTS[factory]:
        pytest.skip("this CPU has no such layout")
    if factory is nf4_base:
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    bias = torch.randn(200).bfloat16() if with_bias else None
    base = factory(torch.randn(200, 96).bfloat16(), bias)
    x, grad = torch.randn(33, 96).bfloat16(), torch.randn(33, 200).bfloat16()
    kept = written(path, base=base, between=torch.ones(3))["base"]
    found = Reader.open(path, FACTS)("base", unmade)
    wanted = base.linear(x, None), base.input_gradient(grad, None)
    for one in (kept, found):
        assert one is not base
        assert torch.equal(one.linear(x, None), wanted[0])
        assert torch.equal(one.input_gradient(grad, None), wanted[1])


def test_lists_matrices_of_experts_and_plain_values_come_back(path) -> None:
    experts = Int8Matrices.of(torch.randn(3, 8, 4).bfloat16())
    values = {"many": [tile_base(torch.randn(40, 8).bfloat16(), None)] * 2} if HAS_AVX512 else {}
    on_tiles = Int8Tiles.of(torch.randn(3, 64, 128).bfloat16())
    values |= {
        "tiles": on_tiles,
        "experts": experts,
        "choice": [True, "ours", None, 1.5],
        "none": torch.empty(0, 4),
    }
    written(path, **values)
    reader = Reader.open(path, FACTS)
    assert reader("choice", unmade) == [True, "ours", None, 1.5]
    assert reader("none", unmade).shape == (0, 4)
    found = reader("experts", unmade)
    assert torch.equal(found.values, experts.values)
    assert all(map(torch.equal, found.sums, experts.sums))
    found = reader("tiles", unmade)
    assert torch.equal(found.values, on_tiles.values)
    assert torch.equal(found.scales, on_tiles.scales)
    assert len(reader("many", unmade)) == 2 or not HAS_AVX512


def test_all_who_map_a_file_share_its_pages_until_they_write(path) -> None:
    weight = torch.arange(2**20, dtype=torch.float32)  # 4 MiB
    kept = written(path, weight=weight)["weight"]
    others = [Reader.open(path, FACTS)("weight", unmade) for _ in range(3)]
    assert all(torch.equal(one, weight) for one in (kept, *others))
    places = [one.data_ptr() for one in (kept, *others)]
    regions = [region for region in _regions() if any(p in region[0] for p in places)]
    assert sum(pss for _, pss, _ in regions) <= 1.1 * weight.nbytes  # of four mappings
    assert sum(private for _, _, private in regions) == 0
    others[0][0] = 7
    assert kept[0] == others[1][0] == 0


def _regions() -> list[tuple[range, int, int]]:
    """Of the regions of this process: addresses, and bytes in Pss and Private_Dirty."""
    text = Path("/proc/self/smaps").read_text()
    return [
        (range(int(a, 16), int(b, 16)), int(pss) * 1024, int(dirty) * 1024)
        for a, b, pss, dirty in re.findall(
            r"^(\w+)-(\w+) .*?^Pss: +(\d+) kB.*?^Private_Dirty: +(\d+) kB", text, re.M | re.S
        )
    ]


def test_the_pages_of_a_weight_that_is_gone_are_unmapped(path) -> None:
    kept = written(path, weight=torch.ones(2**18))["weight"]
    place = kept.data_ptr()
    assert any(place in addresses for addresses, *_ in _regions())
    del kept
    assert not any(place in addresses for addresses, *_ in _regions())


def test_only_a_whole_file_of_this_user_with_the_same_facts_is_opened(tmp_path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        written(Path(str(file.fileno())), weight=torch.arange(5000))
        path.chmod(0o600)
        assert Reader.open(path, FACTS) is not None
        assert Reader.open(path, FACTS | {"sizes": [1, 3]}) is None
        assert Reader.open(tmp_path / "other", FACTS) is None
        path.chmod(0o620)
        assert Reader.open(path, FACTS) is None, "others could write to it"
        path.chmod(0o600)
        for content in (path.read_bytes()[:-1], path.read_bytes() + b"1", b"", b"x" * 100):
            (tmp_path / "cut").write_bytes(content)
            (tmp_path / "cut").chmod(0o600)
            assert Reader.open(tmp_path / "cut", FACTS) is None


def test_any_changed_byte_lost_page_or_exchanged_pages_are_seen(path, monkeypatch) -> None:
    monkeypatch.setattr(mapped, "_CHUNK", 2 * mapped._PAGE)
    values = {"first": torch.randn(5000), "second": torch.randint(9, (70_001,), dtype=torch.int8)}
    written(path, verifiable=True, **values)
    descriptor, size = int(path.name), path.stat().st_size
    content = os.pread(descriptor, size, 0)

    def usable():
        reader = Reader.open(path, FACTS)
        return reader is not None and reader.is_whole()

    assert usable()
    pages = [content[start : start + mapped._PAGE] for start in (0, mapped._PAGE)]
    damages = {place: bytes([content[place] ^ 1]) for place in (*range(0, size, 997), size - 1)}
    damages |= {mapped._PAGE: bytes(mapped._PAGE)}
    for place, damage in damages.items():
        os.pwrite(descriptor, damage, place)
        assert not usable(), place
        os.pwrite(descriptor, content[place : place + len(damage)], place)
    os.pwrite(descriptor, pages[1] + pages[0], 0)
    assert not usable()
    os.pwrite(descriptor, content, 0)
    assert usable()


def test_what_is_missing_is_made(path) -> None:
    written(path, first=torch.arange(5000))
    reader = Reader.open(path, FACTS)
    assert reader("second", lambda: 3) == 3
    assert not reader.is_whole(), "it was written without a digest"


def test_a_full_disk_leaves_every_value_in_private_memory(path, monkeypatch) -> None:
    written_before = mapped._write_all

    def full(descriptor, data, start):
        if start:
            raise OSError(28, "No space left on device")
        written_before(descriptor, data, start)

    monkeypatch.setattr(mapped, "_write_all", full)
    writer = Writer(int(path.name), FACTS)
    values = [torch.ones(2000) * n for n in range(3)]
    kept = [writer(str(n), lambda value=value: value) for n, value in enumerate(values)]
    assert writer.failed == "No space left on device"
    assert all(map(torch.equal, kept, values))
    assert kept[1] is values[1]


def test_what_is_no_frozen_weight_is_not_written(path) -> None:
    writer = Writer(int(path.name), FACTS)
    value = {"a": 1}
    assert writer("dictionary", lambda: value) is value
    assert writer.failed == "builtins.dict cannot be shared"


def test_pages_are_written_inside_the_given_context_alone(path) -> None:
    inside = []

    @contextmanager
    def writing():
        inside.append("in")
        yield
        inside.append("out")

    writer = Writer(int(path.name), FACTS, writing)
    writer("a", lambda: inside.append("made") or torch.ones(3))
    assert inside == ["made", "in", "out"]
