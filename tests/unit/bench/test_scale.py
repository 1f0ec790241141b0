"""`bench scale`: what runs at each value, and its report."""

import os

import pytest

from intel_ft.bench import scale as module
from intel_ft.bench.scale import bench_scale, plotted, task_at, values_of
from intel_ft.bench.tables import scale_table
from intel_ft.errors import IntelFTError, UserError


def test_values_are_sorted_and_have_defaults(monkeypatch):
    assert values_of("batch", "8, 2,8") == [2, 8]
    assert values_of("rank", None) == [8, 16, 32, 64, 128, 256]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12))
    assert values_of("threads", None) == [1, 2, 4, 8]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert values_of("threads", None) == [1, 2, 4, 8, 16]
    for text in ("", "8,", "a", "0,1", "-4"):
        with pytest.raises(UserError, match="--values"):
            values_of("rank", text)
    with pytest.raises(UserError, match="row-tokens"):
        values_of("hidden", None)


def test_an_axis_changes_one_thing():
    row = task_at("row-tokens", 96, "tiny", 1.0, 2).workload
    assert (row.lengths, row.row_tokens, row.batch) == ("fixed", 96, 1)
    batch = task_at("batch", 3, "tiny", 1.0, None)
    assert (batch.workload.lengths, batch.workload.batch, batch.rank) == ("alpaca", 3, 16)
    rank = task_at("rank", 64, "tiny", 1.0, 2)
    assert (rank.rank, rank.threads, rank.workload.batch) == (64, 2, 8)
    assert task_at("threads", 1, "tiny", 1.0, 2).threads == 1
    assert task_at("processes", 2, "tiny", 1.0, None).processes == 2


def _measured(rate, gemm=400.0):
    return {
        "tokens_per_s": rate,
        "supervised_tokens_per_s": rate / 2,
        "mfu": rate / 1000,
        "peak_rss_gib": 1.5,
        "gemm_gflops": gemm,
        "step_s": 0.5,
        "step_times": [0.5],
        "threads": 2,
    }


def test_values_take_turns_and_one_that_fails_is_a_result(monkeypatch):
    rates, order = iter([100.0, 200.0, 300.0]), []

    def run(task):
        order.append(task.rank)
        if task.rank == 32:
            raise IntelFTError("killed")
        return _measured(next(rates), 200.0 if task.rank == 16 else 400.0 - len(order) * 10)

    monkeypatch.setattr(module, "run_task", run)
    report = bench_scale("tiny", "rank", [8, 32], 2, 0.0, None)
    assert order == [8, 32, 8]
    first, second = report["points"]
    assert (first["value"], first["tokens_per_s"], len(first["runs"])) == (8, 150.0, 2)
    assert second == {"value": 32, "error": "killed"}
    assert report["machine"]["gemm_spread"] == pytest.approx(390 / 370)
    table = scale_table(report)
    assert table.columns == ("tiny, rank", "token/s", "MFU", "peak memory GiB", "step s")
    assert table.rows == [
        ("8", "150", "0.150", "1.50", "0.5"),
        ("32", "failed", "failed", "failed", "failed"),
    ]
    assert "32: killed" in table.notes
    assert plotted(report).count("<circle") == 2  # a point in each of two panels


def test_nothing_measured_is_an_error(monkeypatch):
    def run(task):
        raise IntelFTError("killed")

    monkeypatch.setattr(module, "run_task", run)
    with pytest.raises(IntelFTError, match="killed"):
        bench_scale("tiny", "batch", [1, 2], 1, 0.0, None)


def test_wrong_values_are_reported_before_anything_runs(monkeypatch):
    monkeypatch.setattr(module, "run_task", None)
    for over, value in (("threads", 100000), ("processes", 100000), ("row-tokens", 4)):
        with pytest.raises(UserError):
            bench_scale("tiny", over, [value], 1, 0.0, None)
