"""The dtype and the number of threads on a CPU."""

import pytest
import torch

from intel_ft.backends import cpu
from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.host import topology
from intel_ft.host.topology import Core, Topology


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
    value, why = cpu.dtype_for(ModelConfig(name_or_path="any"))
    assert value == dtype
    assert reason in why
    assert cpu.dtype_for(ModelConfig(name_or_path="any", dtype="bfloat16"))[0] == torch.bfloat16


@pytest.mark.parametrize(
    ("by", "sharing", "threads", "reason"),
    [
        ((), 1, 4, "the control group allows 4 cores"),
        ((topology.SLURM,), 1, 4, "Slurm allows 4 cores"),
        ((topology.SLURM,), 3, 1, "Slurm allows 4 cores, shared by 3 ranks"),
    ],
)
def test_threads_by_who_limits_them(monkeypatch, by, sharing, threads, reason) -> None:
    cores = tuple(Core(0, 0, (number,)) for number in range(8))
    monkeypatch.setattr(topology, "read", lambda: Topology(cores, {}, 4.0, *by))
    monkeypatch.setattr(topology, "is_bound", lambda: False)
    assert cpu._threads(BackendConfig(), sharing) == (threads, reason)
