"""An example of weight 2 trains as the example twice would, on any number of ranks."""

import pytest
from safetensors.torch import load_file
from support.harness import metrics, run, start_ranks, write_config
from support.small_runs import ROWS, make_bases, write_rows

WEIGHTS = (2, 1, 3, 1)


def fresh(folder, rows, **data):
    folder.mkdir()
    write_rows(folder / "train.jsonl", rows)
    write_config(
        folder / "config.yaml",
        model={"name_or_path": "../base/one", "dtype": "float32"},
        data={"max_length": 64, "template": "alpaca"} | data,
        train={
            "max_steps": 3,
            "global_batch_size": len(rows),
            "max_tokens_per_row": 256,
            "learning_rate": 0.01,
            "save_steps": 3,
        },
    )
    return folder


def test_a_weight_of_two_is_the_example_twice(tmp_path) -> None:
    make_bases(tmp_path / "base")
    rows = [row | {"importance": w} for row, w in zip(ROWS, WEIGHTS, strict=False)]
    weighted = fresh(tmp_path / "weighted", rows, weight_column="importance")
    repeated = fresh(tmp_path / "repeated", [row for row in rows for _ in range(row["importance"])])
    result = run("train", "config.yaml", cwd=repeated)
    assert result.code == 0, result.err
    ranks = [rank.wait(120) for rank in start_ranks(2, "train", "config.yaml", cwd=weighted)]
    assert [rank.code for rank in ranks] == [0, 0], ranks
    found, expected = metrics(weighted / "out"), metrics(repeated / "out")
    for name in ("loss", "grad_norm"):
        wanted = pytest.approx([line[name] for line in expected], rel=1e-5)
        assert [line[name] for line in found] == wanted
    assert found[0]["supervised_tokens"] < expected[0]["supervised_tokens"]
    files = [load_file(f / "out/adapter/adapter_model.safetensors") for f in (weighted, repeated)]
    for name, weight in files[1].items():
        assert (files[0][name] - weight).norm() <= 1e-4 * weight.norm(), name
