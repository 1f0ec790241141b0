"""Patterns, and files at URLs through fsspec, here in its filesystem in memory."""

import gzip
import json

import fsspec
import pytest

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.sources.rows import load_rows

ROWS = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(4)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prompts(source, split="train"):
    return [prompt for (prompt,) in load_rows(str(source), split).cells(["prompt"])]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe("/bucket/a-train.jsonl", lines(ROWS[:1]))
    system.pipe("/bucket/b-train.jsonl.gz", gzip.compress(lines(ROWS[1:2])))
    system.pipe("/bucket/deep/dev.jsonl", lines(ROWS[2:3]))
    system.pipe("/bucket/notes.pdf", b"%PDF")
    yield system
    system.store.clear()


def test_a_file_at_a_url(memory):
    assert prompts("memory://bucket/a-train.jsonl") == ["q0"]
    assert prompts("memory://bucket/b-train.jsonl.gz") == ["q1"]


def test_a_folder_at_a_url_has_splits(memory):
    memory.pipe("/bucket/validation.jsonl", lines(ROWS[3:]))
    memory.rm("/bucket/b-train.jsonl.gz")
    assert prompts("memory://bucket") == ["q0"]
    assert prompts("memory://bucket", "validation") == ["q3"]


def test_a_pattern_at_a_url(memory):
    memory.pipe("/bucket/c-train.jsonl", lines(ROWS[3:]))
    assert prompts("memory://bucket/*-train.jsonl") == ["q0", "q3"]


def test_a_file_is_fetched_once_for_each_version(memory, monkeypatch):
    url, fetched = "memory://bucket/a-train.jsonl", []
    original = type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda *args: fetched.append(args[1]) or original(*args)
    )
    assert prompts(url) == prompts(url) == ["q0"] and len(fetched) == 1
    memory.pipe("/bucket/a-train.jsonl", lines(ROWS[2:]))
    assert prompts(url) == ["q2", "q3"] and len(fetched) == 2


def test_file_urls_are_local_paths(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    assert prompts(f"file://{tmp_path}/rows.jsonl") == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(
    ("url", "error", "fact"),
    [
        ("memory://bucket/missing.jsonl", UserError, "no such file or folder"),
        ("memory://bucket/*.csv", UserError, "no data files there"),
        ("s3://bucket/a.jsonl", EnvironmentProblem, "a package is missing: Install s3fs"),
        ("nonsense://bucket/a.jsonl", UserError, "fsspec does not support nonsense://"),
    ],
)
def test_what_cannot_be_fetched_is_named(memory, url, error, fact):
    with pytest.raises(error) as caught:
        load_rows(url)
    assert url in str(caught.value) and fact in str(caught.value)


def test_a_filesystem_that_fails_is_an_environment_problem(memory, monkeypatch):
    def fail(*_):
        raise PermissionError("no credentials")

    monkeypatch.setattr(type(memory), "isfile", fail)
    with pytest.raises(EnvironmentProblem, match="no credentials"):
        load_rows("memory://bucket/a-train.jsonl")


def test_a_pattern_is_all_files_that_it_matches(tmp_path):
    for name, rows in (("train-1", ROWS[:1]), ("train-2", ROWS[1:2]), ("test", ROWS[2:])):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(rows))
    assert prompts(tmp_path / "train-*.jsonl") == ["q0", "q1"]
    assert prompts(tmp_path / "*.jsonl") == ["q2", "q3", "q0", "q1"]
    assert prompts(tmp_path / "train-[12].jsonl", "train[1:]") == ["q1"]
    rows = load_rows(str(tmp_path / "train-*.jsonl"))
    assert rows.where(1) == f"{tmp_path / 'train-2.jsonl'} row 1"


def test_a_name_with_brackets_is_a_file_if_it_exists(tmp_path):
    (tmp_path / "rows[1].jsonl").write_bytes(lines(ROWS))
    assert len(prompts(tmp_path / "rows[1].jsonl")) == 4


@pytest.mark.parametrize(
    ("pattern", "fact"),
    [
        ("*.csv", "no file matches this pattern"),
        ("*", "matches {}/notes.pdf, which has an unknown file type .pdf"),
        ("[ab].*", "several types"),
    ],
)
def test_patterns_that_cannot_be_read_are_refused(tmp_path, pattern, fact):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError) as caught:
        load_rows(str(tmp_path / pattern))
    assert fact.format(tmp_path) in str(caught.value)
