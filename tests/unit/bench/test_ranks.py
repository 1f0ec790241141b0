"""`bench ranks`: its arguments and its report; tests/e2e has the runs themselves."""

from dataclasses import replace

import pytest

from intel_ft.bench import ranks, run_worker
from intel_ft.bench.tables import ranks_table
from intel_ft.bench.task import OWN_TRAINER, Task
from intel_ft.bench.workloads import workload
from intel_ft.errors import UserError
from intel_ft.host import topology
from intel_ft.host.topology import Core, Topology


@pytest.fixture(autouse=True)
def _sixty_four_cores(monkeypatch):
    cores = tuple(Core(0, 0, (n,)) for n in range(64))
    monkeypatch.setattr(topology, "read", lambda: Topology(cores, {}, None))


def test_ranks_that_fit():
    assert ranks.values_of(None, 16) == [1, 2, 4]
    assert ranks.values_of("4,1,4", 16) == [1, 4]
    for text, message in (("8", "1 to 4 ranks"), ("0", "above 0"), ("two", "whole numbers")):
        with pytest.raises(UserError, match=message):
            ranks.values_of(text, 16)
    with pytest.raises(UserError, match="this process may use 64"):
        ranks.values_of(None, 65)


def test_efficiency_is_a_rank_s_speed_over_that_of_the_fewest(monkeypatch):
    started = []

    def run(task, via):
        assert (task.threads, via) == (16, "mpirun")
        started.append((task.processes, task.workload.batch))
        rate = {1: 100.0, 2: 190.0, 4: 320.0}[task.processes]
        return {
            "tokens_per_s": rate,
            "mfu": rate / 1000,
            "gemm_gflops": 400.0,
            "step_s": 1.0,
            "exchange_share": 0.1,
            "rank_imbalance": 0.02,
            "collective": "ccl",
            "gradient_mib": 8.0,
            "threads": 16,
        }

    monkeypatch.setattr(ranks, "run_ranks", run)
    task = Task(OWN_TRAINER, workload("tiny"), seconds=0.0)
    report = ranks.bench_ranks(task, [1, 2, 4], 16, "mpirun", 1)
    assert started == [(1, 32), (2, 64), (4, 128), (2, 32), (4, 32)]
    assert [point["efficiency"] for point in report["weak"]] == pytest.approx([1, 0.95, 0.8])
    assert report["strong"][0] == report["weak"][0]
    assert "| weak, 4 | 320 | 0.800 | 0.320 | 400 |" in ranks_table(report).markdown()
    assert not any("Unreliable" in note for note in ranks_table(report).notes)
    report["weak"][1]["unreliable"] = ["GEMMs at 2 GFLOP/s, above 1 from registers alone"]
    assert any("weak, 2: GEMMs at 2" in note for note in ranks_table(report).notes)


def test_processes_share_the_cores_that_there_are():
    task = Task(OWN_TRAINER, workload("tiny"), processes=4)
    assert run_worker.with_threads(task).threads == 16
    assert run_worker.with_threads(replace(task, threads=3)).threads == 3
    for wrong in (replace(task, threads=17), replace(task, processes=65)):
        with pytest.raises(UserError, match="this process may use 64 cores"):
            run_worker.with_threads(wrong)
