"""Columns and keys with a meaning, through the command line: trained on, refused, or named."""

import json

from support.harness import run, write_config

USER, ANSWER = {"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}


def test_what_is_not_used_is_named_once_by_validate_and_train(tmp_path):
    turns = [USER, {**ANSWER, "weight": 0}, {**USER, "name": "Ann"}, ANSWER]
    rows = [{"id": number, "messages": turns} for number in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_config(tmp_path / "c.yaml", data={"train": "rows.jsonl"}, train={"max_steps": 1})
    checked = run("validate", "c.yaml", "--json", cwd=tmp_path)
    facts = json.loads(checked.out)
    assert checked.code == 0 and facts["not_used"] == ["id", "messages[].name"]
    assert facts["untrained_answers"] == 2
    trained = run("train", "c.yaml", cwd=tmp_path)
    assert trained.code == 0, trained.err
    for result in (checked, trained):
        assert result.err.count("not used: id, messages[].name") == 1
    record = json.loads((tmp_path / "out/environment.json").read_text())["data"]["train"]
    assert record["supervised_tokens"] == facts["supervised_tokens"] == 4
    assert record["unused"] == ["id", "messages[].name"]

    (tmp_path / "rows.jsonl").write_text('{"prompt": "i", "completion": "o", "label": false}')
    refused = run("train", "c.yaml", "output.directory=other", cwd=tmp_path)
    assert refused.code == 2 and "rows.jsonl: column label" in refused.last_line
    assert not (tmp_path / "other").exists()
