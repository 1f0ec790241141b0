"""How many ranks `launch` starts: as whole steps measured it for such a model, or by default."""

import dataclasses
import json

import pytest

from intel_ft.bench import tune
from intel_ft.bench.tune import best_of, task_of
from intel_ft.config import build
from intel_ft.distributed.launch import tune_ranks
from intel_ft.distributed.launch.tune_ranks import chosen_ranks, ranks_instead, tuned_ranks
from intel_ft.distributed.placement import ranks_per_host
from intel_ft.errors import IntelFTError, UserError
from intel_ft.host import cpu
from intel_ft.host.topology import Core, Topology

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


def host(cores, nodes=1):
    return Topology(tuple(Core(0, n * nodes // cores, (n,)) for n in range(cores)), {}, None)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(tune_ranks, "cpu_flags", lambda: {"amx_bf16"})

    def of(shape=LLAMA, **backend):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model/config.json").write_text(json.dumps(shape))
        values = {
            "model": {"name_or_path": str(tmp_path / "model")},
            "data": {"train": "x"},
            "method": {"r": 8},
            "train": {"global_batch_size": 24},
            "backend": {"name": "cpu"} | backend,
            "output": {"directory": "x"},
        }
        return build(values, "test")

    return of


@pytest.mark.parametrize(
    ("cores", "nodes", "amx", "ranks"),
    [
        (16, 1, True, 4),
        (16, 1, False, 1),
        (8, 1, True, 2),
        (4, 1, True, 1),
        (2, 1, True, 1),
        (64, 1, True, 4),
        (64, 2, True, 8),
        (18, 1, True, 3),
        (17, 1, True, 1),
        (64, 2, False, 2),
        (8, 4, True, 4),
    ],
)
def test_what_is_started_where_nothing_was_measured(cores, nodes, amx, ranks) -> None:
    found, why = ranks_per_host(host(cores, nodes), amx=amx)
    assert found == ranks
    assert ("AMX" in why) == (amx and ranks > nodes)


def rates_of(monkeypatch, **rates):
    seen = []

    def run_task(task):
        seen.append(task)
        rate = rates[f"of_{task.processes}"]
        if rate is None:
            raise IntelFTError("out of memory")
        return {"tokens_per_s": rate}

    monkeypatch.setattr(tune, "run_task", run_task)
    monkeypatch.setattr(tune, "with_threads", lambda task: task)
    return seen


def test_the_fastest_is_kept_for_such_a_model_on_such_a_host(config, monkeypatch) -> None:
    settings = config()
    seen = rates_of(monkeypatch, of_1=100.0, of_2=150.0, of_4=151.0, of_8=None)
    assert tune.tune(settings, host(8)) == [(1, 100.0), (2, 150.0), (4, 151.0), (8, None)]
    assert [(task.processes, task.threads) for task in seen] == [(1, 8), (2, 4), (4, 2), (8, 1)]
    ranks, why = chosen_ranks(host(8), settings)
    assert ranks == 2, "four are not worth it"
    assert why == "measured in whole steps: 150 token/s, against 100 with one rank"
    assert tuned_ranks(host(16), settings) is None
    assert tuned_ranks(host(8), config(prepack=False)) is None
    assert tuned_ranks(host(8), config(LLAMA | {"hidden_size": 2048})) is None
    assert tuned_ranks(host(8), config(LLAMA | {"num_hidden_layers": 40})) == (ranks, why)
    monkeypatch.setattr(tune_ranks, "installed", lambda _: "another")
    assert tuned_ranks(host(8), config()) is None


def results_of(monkeypatch, **results):
    """Each run's results by number of ranks: the first one, then those of repetitions."""
    seen = []

    def run_task(task):
        seen.append(task.processes)
        return results[f"of_{task.processes}"].pop(0)

    monkeypatch.setattr(tune, "run_task", run_task)
    monkeypatch.setattr(tune, "with_threads", lambda task: task)
    return seen


def result(tokens_per_s: float, mfu: float = 0.5, registers: float = 1000.0) -> dict[str, float]:
    rates = {"gemm_gflops": 500.0, "register_gflops": registers}
    return {"tokens_per_s": tokens_per_s, "mfu": mfu, "utilization": mfu / 2, **rates}


def test_a_rate_that_cannot_be_true_is_measured_again_or_discarded(
    config, monkeypatch, caplog
) -> None:
    seen = results_of(
        monkeypatch,
        of_1=[result(100.0)],
        of_2=[result(900.0, mfu=1.8), result(120.0)],
        of_4=[result(800.0, registers=400.0), result(800.0, registers=400.0)],
    )
    assert tune.tune(config(), host(4)) == [(1, 100.0), (2, 120.0), (4, None)]
    assert seen == [1, 2, 2, 4, 4]
    assert (
        "2 ranks: implausible result, measured again: a step took 0.56 of the time" in caplog.text
    )
    assert "4 ranks: implausible result, discarded: GEMMs at 500 GFLOP/s, above 400" in caplog.text
    assert chosen_ranks(host(4), config())[0] == 2


def test_a_step_far_off_its_gemms_is_measured_again(config, monkeypatch, caplog) -> None:
    of_2 = [result(20.0, mfu=0.1), result(150.0)]
    seen = results_of(monkeypatch, of_1=[result(100.0)], of_2=of_2, of_4=[result(90.0)])
    assert tune.tune(config(), host(4)) == [(1, 100.0), (2, 150.0), (4, 90.0)]
    assert seen == [1, 2, 4, 2]
    assert "2 ranks: a step took 10 times as long as its GEMMs" in caplog.text


def test_no_number_that_ran_is_an_error() -> None:
    assert best_of([(1, None), (2, 5.0), (4, 5.05)]) == (2, 5.0)
    with pytest.raises(IntelFTError, match="no number of ranks could be measured"):
        best_of([(1, None)])


def test_the_measured_run_is_the_configs(config) -> None:
    task = task_of(config(LLAMA | {"num_key_value_heads": 8}))
    assert (task.rank, task.base_dtype, task.workload.batch) == (8, "auto", 24)
    shape = dataclasses.asdict(task.workload)
    assert (shape["hidden"], shape["layers"], shape["kv_heads"]) == (4096, 4, 8)
    with pytest.raises(UserError, match=r"config\.json has no vocab_size, .* --ranks-per-host"):
        task_of(config({name: value for name, value in LLAMA.items() if name != "vocab_size"}))
    with pytest.raises(UserError, match="--tune does not measure backend"):
        task_of(config(name="ipex"))


def test_a_run_alone_says_what_would_be_faster(config, monkeypatch) -> None:
    monkeypatch.setattr(tune_ranks.topology, "read", lambda: host(16))
    [decision] = ranks_instead(config())
    assert str(decision).startswith("ranks = 1 (`intel-ft launch` starts 4 here: 4 ranks of 4 AMX")
    assert ranks_instead(config(threads=4)) == []
    few = config().model_copy(
        update={"train": config().train.model_copy(update={"global_batch_size": 3})}
    )
    assert ranks_instead(few) == [], "a rank would have nothing to do"
    monkeypatch.setattr(tune_ranks.topology, "read", lambda: host(2))
    assert ranks_instead(config()) == []
