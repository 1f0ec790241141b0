"""A small run whose every world must be the same, and what "the same" means; used by invariants
and e2e.
"""

import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.harness import metrics, shortest_examples, write_config

STEPS = 16


def fresh(folder, **train):
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 40)
    shortest_examples(folder / "eval.jsonl", 40, 50)
    settings = {
        "max_steps": STEPS,
        "global_batch_size": 7,  # no number of ranks divides it
        "max_tokens_per_row": 256,
        "save_steps": 4,
        "eval_steps": 8,
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
        found, wanted = ([line.get(name) for line in metrics(r)] for r in (run, reference))
        assert found == wanted
    assert losses(run) == pytest.approx(losses(reference), rel=tolerance)
    found, wanted = (load_file(r / "adapter/adapter_model.safetensors") for r in (run, reference))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert (found[name] - weight).norm() <= adapter * weight.norm(), name


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def ranks_in(folder: Path) -> dict[int, int]:
    """The processes of the ranks that run in this folder, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() != folder:
                continue
            variables = (process / "environ").read_text().split("\0")
        except OSError:
            continue  # it has just ended
        values = dict(line.partition("=")[::2] for line in variables)
        for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK"):
            if name in values:
                found[int(values[name])] = int(process.name)
                break
    return found
