"""What of the data is trained and what is left out, through the command line."""

import json

from support.harness import run, shortest_examples, write_config


def test_test_files_and_bad_rows_are_left_out_and_said(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 8)
    shortest_examples(folder / "test.jsonl", 8, 16)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "x", "output": ""}) + "\n")
    write_config(tmp_path / "config.yaml", data={"train": "my data"}, train={"max_steps": 1})

    refused = run("validate", "config.yaml", cwd=tmp_path)
    assert refused.code == 2
    assert "train.jsonl row 9: output is empty" in refused.last_line
    assert "data.on_bad" in refused.last_line

    trained = run("train", "config.yaml", "data.on_bad=drop", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert "split train (train.jsonl); not used: test (test.jsonl)" in trained.err
    assert "dropped 1 of 9 rows" in trained.err
    record = json.loads((tmp_path / "out/environment.json").read_text())["data"]["train"]
    assert (record["rows"], record["examples"], record["bad"]) == (9, 8, 1)
    assert record["other_splits"] == ["test"]

    evaluated = run("eval", "out", "--data", "my data", "--json", cwd=tmp_path)
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["examples"] == 8
    assert "split train (train.jsonl); not used: test (test.jsonl)" in evaluated.err
