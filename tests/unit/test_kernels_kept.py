"""Products of ever new lengths must not pile up in memory."""

import subprocess
import sys

import pytest

PRODUCTS = """
import ctypes, torch
from intel_ft.backends.memory import keep_few_kernels

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

before = multiply(range(128, 128 + 100))
print((multiply(range(256, 256 + 200)) - before) / 200)
"""


def _bytes_a_length(few: bool) -> float:
    command = [sys.executable, "-c", PRODUCTS.format(few=few)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_new_lengths_take_no_more_memory() -> None:
    kept = _bytes_a_length(few=False)
    if kept < 2**14:
        pytest.skip("oneDNN keeps no kernels for bf16 on this CPU")
    assert _bytes_a_length(few=True) < kept / 20
