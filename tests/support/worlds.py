"""A small run that must be the same on any number of ranks, and what "the same" means."""

import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from support.harness import metrics, shortest_examples, write_config

STEPS = 8


def fresh(folder, **train):
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 40)
    shortest_examples(folder / "eval.jsonl", 40, 50)
    settings = {
        "max_steps": STEPS,
        "global_batch_size": 7,  # no number of ranks divides it
        "max_tokens_per_row": 256,
        "save_steps": 2,
        "eval_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.002,
    }
    data = {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 256}
    write_config(folder / "config.yaml", data=data, train=settings | train)
    return folder


def losses(run):
    return [line.get("loss", line.get("eval_loss")) for line in metrics(run)]


def assert_same(run, reference, tolerance=1e-5, adapter=1e-4):
    for name in ("step", "tokens", "supervised_tokens", "lr"):
        values, expected = ([line.get(name) for line in metrics(r)] for r in (run, reference))
        assert values == expected
    assert losses(run) == pytest.approx(losses(reference), rel=tolerance)
    weights, expected = (
        load_file(r / "adapter/adapter_model.safetensors") for r in (run, reference)
    )
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert (weights[name] - weight).norm() <= adapter * weight.norm(), name


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def ranks_in(folder: Path) -> dict[int, int]:
    """The PIDs of the ranks that run in this folder, by rank."""
    pids = {}
    for process in psutil.process_iter(["cwd", "environ"]):
        if process.info["cwd"] != str(folder):
            continue
        variables = process.info["environ"] or {}
        for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK"):
            if name in variables:
                pids[int(variables[name])] = process.pid
                break
    return pids
