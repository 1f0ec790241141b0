"""Products of ever new lengths must not pile up in memory, nor be made again for every row."""

import os
import subprocess
import sys

import pytest

from intel_ft.host import allocator

PRODUCTS = """
import ctypes, torch
from intel_ft.host.allocator import keep_few_kernels

class Used(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks bytes fordblks keepcost".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Used
if {few}:
    keep_few_kernels()
weight = torch.ones(64, 96, dtype=torch.bfloat16)

def multiply(lengths):
    for length in lengths:
        torch.ones(length, 96, dtype=torch.bfloat16) @ weight.T
    return mallinfo2().bytes

before = multiply(range(128, 128 + 600))
print((multiply(range(1000, 1000 + 200)) - before) / 200)
"""


def _bytes_a_length(few: bool) -> float:
    command = [sys.executable, "-c", PRODUCTS.format(few=few)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_new_lengths_take_no_more_memory() -> None:
    kept = _bytes_a_length(few=False)
    if kept < 2**14:
        pytest.skip("oneDNN keeps no kernels for bf16 on this CPU")
    assert _bytes_a_length(few=True) < kept / 20


@pytest.mark.parametrize(
    ("flags", "set_by_user", "kept"),
    [
        ({"avx2"}, None, "64"),
        ({"avx512_bf16"}, None, "64"),
        ({"avx512_bf16", "amx_bf16"}, None, "512"),
        ({"amx_bf16"}, "99", "99"),
    ],
)
def test_more_are_kept_where_they_take_long_to_make(monkeypatch, flags, set_by_user, kept):
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")  # so that what the call sets is undone
        monkeypatch.delenv(name)
    if set_by_user:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", set_by_user)
    monkeypatch.setattr(allocator, "cpu_flags", lambda: flags)
    assert allocator.keep_few_kernels().value == kept
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept
    assert os.environ["LRU_CACHE_CAPACITY"] == "1"
