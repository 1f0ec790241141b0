"""Which dtype a CPU multiplies in."""

import pytest
import torch

from intel_ft.backends import cpu
from intel_ft.config import ModelConfig


@pytest.mark.parametrize(
    ("flags", "limit", "dtype", "reason"),
    [
        ({"avx512_bf16", "amx_bf16"}, None, torch.bfloat16, "AMX"),
        ({"avx512_bf16"}, None, torch.bfloat16, "AVX512-BF16"),
        ({"avx2"}, None, torch.float32, "emulated"),
        ({"amx_bf16"}, "AVX512_CORE_BF16", torch.bfloat16, "AMX"),
        ({"amx_bf16"}, "avx512_core_vnni", torch.float32, "ONEDNN_MAX_CPU_ISA=avx512_core_vnni"),
        ({"amx_bf16"}, "ALL", torch.bfloat16, "AMX"),
    ],
)
def test_bf16_is_for_cpus_that_may_multiply_in_it(monkeypatch, flags, limit, dtype, reason) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: flags)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    found, why = cpu._dtype(ModelConfig(name_or_path="any"))
    assert found == dtype
    assert reason in why
    assert cpu._dtype(ModelConfig(name_or_path="any", dtype="bfloat16"))[0] == torch.bfloat16
