"""`bench prepare`: the file it writes, the report it makes, what it refuses."""

import json

import pytest

from intel_ft.bench import prepare as module
from intel_ft.bench.prepare import bench_prepare, write_rows
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError


def test_rows_are_alpaca_like_and_the_same_each_time(tmp_path):
    first, second, other = (tmp_path / name for name in "abc")
    write_rows(first, 400)
    write_rows(second, 400)
    write_rows(other, 400, seed=1)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert len(rows) == 400
    assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
    assert 0.3 < sum(bool(row["input"]) for row in rows) / 400 < 0.5
    assert 200 < sum(len(row["output"]) for row in rows) / 400 < 350


def test_report_has_medians_and_ratios(monkeypatch):
    seconds = {"ours": iter([1.0, 9.0, 2.0]), "trl": iter([8.0, 6.0, 7.0])}

    def run(contender, file, tokenizer):
        assert len(file.read_text().splitlines()) == 10
        taken = next(seconds[contender])
        return {"seconds": taken, "rows": 10, "tokens": 100, "supervised_tokens": 40}

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "installed", lambda _: "1.16.0")
    report = bench_prepare(10, 3, ["trl", "trl"])
    ours, trl = report["ours"], report["peers"]["trl"]
    assert (ours["seconds"], ours["rows_per_s"], ours["tokens_per_s"]) == (2.0, 5.0, 50.0)
    assert (trl["seconds"], trl["ratio"]) == (7.0, 3.5)
    json.dumps(report)


def test_a_peer_that_fails_is_a_result_and_ours_is_not(monkeypatch):
    def run(contender, file, tokenizer):
        if contender == broken:
            raise IntelFTError("no")
        return {"seconds": 1.0, "rows": 1, "tokens": 1, "supervised_tokens": 1}

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "installed", lambda _: "1.16.0")
    broken = "trl"
    assert bench_prepare(1, 2, ["trl"])["peers"] == {"trl": {"error": "no"}}
    broken = "ours"
    with pytest.raises(IntelFTError):
        bench_prepare(1, 1, [])


def test_missing_packages_and_mistakes_are_reported_before_anything_runs(monkeypatch):
    monkeypatch.setattr(module, "_run", None)
    monkeypatch.setattr(module, "installed", lambda _: None)
    with pytest.raises(UserError, match="peer 'axolotl'"):
        bench_prepare(10, 1, ["axolotl"])
    with pytest.raises(EnvironmentProblem, match="trl is not installed"):
        bench_prepare(10, 1, ["trl"])
    with pytest.raises(UserError, match="at least one"):
        bench_prepare(0, 1, [])
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        bench_prepare(10, 1, [], tokenizer="nowhere")


def test_our_preparation_runs_in_a_separate_process():
    ours = bench_prepare(50, 1, [])["ours"]
    assert ours["rows_per_s"] > 0 and 0 < ours["supervised_tokens"] < ours["tokens"]
