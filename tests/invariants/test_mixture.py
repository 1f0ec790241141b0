"""A mixture of sources is the same run on any number of ranks, and after a kill.

Shares, orders and other numbers of ranks: tests/unit/batching/test_order.py.
"""

import json
import signal

import pytest
from support.harness import run, shortest_examples, start, start_ranks, write_config
from support.worlds import assert_same

FLOAT32 = "model.dtype=float32"


def fresh(folder):
    folder.mkdir()
    shortest_examples(folder / "code.jsonl", 0, 24)
    texts = (f"def f{n}(x):\n    return x + {n}\n" * 12 for n in range(4))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(lines)
    sources = [
        {"path": "code.jsonl", "weight": 3},
        {"path": "text.jsonl", "weight": 1, "on_long": "split"},
    ]
    write_config(
        folder / "config.yaml",
        data={"train": sources, "max_length": 96, "on_long": "drop", "cache": "cache"},
        train={"max_steps": 6, "global_batch_size": 7, "logging_steps": 1, "save_steps": 2},
    )
    return folder


def test_a_mixture_is_the_same_run_on_any_number_of_ranks_and_after_a_kill(tmp_path):
    one, killed = (fresh(tmp_path / name) for name in ("one", "killed"))
    result = run("train", "config.yaml", FLOAT32, cwd=one, seconds=400)
    assert result.code == 0, result.err
    assert "from text.jsonl, which has" in result.err
    data = json.loads((one / "out/environment.json").read_text())["data"]["train"]
    shares = [source["share"] for source in data["sources"]]
    assert shares == pytest.approx([0.75, 0.25], abs=1 / data["examples"])

    process = start("train", "config.yaml", FLOAT32, cwd=killed)
    process.wait_until((killed / "out/checkpoint-2").exists)
    process.kill(signal.SIGKILL)
    assert process.wait(60).code == -signal.SIGKILL
    config = killed / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("weight: 3", "weight: 2"))
    result = run("train", "config.yaml", FLOAT32, "--resume", cwd=killed)
    assert result.code == 2 and "belongs to another run: mixture was" in result.last_line
    config.write_text(text)
    resumed = start_ranks(2, "train", "config.yaml", FLOAT32, "--resume", cwd=killed)
    results = [rank.wait(400) for rank in resumed]
    assert [result.code for result in results] == [0, 0], results
    assert_same(killed / "out", one / "out")
