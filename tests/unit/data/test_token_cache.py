"""The cache of tokenized data: what is in it, when it is used again, and that kills do no harm."""

import json
import logging
import multiprocessing
import os

import numpy as np
import pytest
from support.data_tokenizers import tokenizer
from transformers import AutoTokenizer

from intel_ft.assets import resolve
from intel_ft.config_sections import DataConfig
from intel_ft.data import blocks, token_cache
from intel_ft.data.prepare import prepare
from intel_ft.data.stored_examples import Writer
from intel_ft.data.training_set import tokenize
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.sources import cache_folder
from intel_ft.sources.rows import load_rows


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Reads rows.jsonl through a cache, in blocks of four rows."""
    monkeypatch.setattr(token_cache, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(cache_folder, "_held", {})

    def read(**settings):
        values = {"template": "none", "cache": str(tmp_path / "cache"), **settings}
        data = DataConfig(train=str(tmp_path / "rows.jsonl"), **values)
        return tokenize(data.of(data.sources[0]), tokenizer("byte"))

    return read


def write(tmp_path, *completions):
    rows = [{"prompt": f"q{n}", "completion": text} for n, text in enumerate(completions)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)


def entries(tmp_path):
    return [path for path in (tmp_path / "cache").iterdir() if path.name != "locks"]


def assert_same(tokenized, prepared):
    found, expected = tokenized.examples, prepared.examples
    assert len(found) == len(expected)
    for place in range(len(expected)):
        for array, other in zip(found[place], expected[place], strict=True):
            assert np.array_equal(array, other) and array.dtype == other.dtype
    for name in ("lengths", "supervised_counts", "hashes", "highest_id"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


ANSWERS = [f"{'x' * n} y" for n in range(1, 12)]


def test_what_is_read_from_the_cache_is_what_is_read_without_it(tmp_path, cached):
    write(tmp_path, *ANSWERS)
    tokenized = cached()
    data = DataConfig(train=str(tmp_path / "rows.jsonl"), template="none")
    prepared = prepare(data, str(tmp_path / "rows.jsonl"), tokenizer("byte"))
    assert_same(tokenized, prepared)
    assert tokenized.report == prepared.report and tokenized.template == "none"
    highest = prepared.examples.highest_id
    assert tokenized.examples.ids_beyond(highest) == {highest}
    assert tokenized.examples.ids_beyond(highest + 1) == set()


def test_a_second_run_tokenizes_nothing(tmp_path, cached, monkeypatch):
    write(tmp_path, *ANSWERS)
    first = cached()
    assert [path.name for path in entries(tmp_path)[0].iterdir() if path.name == "rows"] == []
    monkeypatch.setattr(blocks, "prepare_rows", None)  # whoever calls it fails
    cache_folder._held.clear()
    assert_same(cached(), first)


@pytest.mark.parametrize(
    "change", ["rows", "config", "tokenizer's template", "package", "maximum of examples"]
)
def test_what_the_tokens_follow_from_is_in_the_fingerprint(tmp_path, cached, monkeypatch, change):
    write(tmp_path, *ANSWERS)
    cached()
    settings = {}
    if change == "rows":
        write(tmp_path, *ANSWERS[:-1], "z" + ANSWERS[-1][1:])  # of the same size
    elif change == "config":
        settings = {"loss_on": "all"}
    elif change == "tokenizer's template":
        monkeypatch.setattr(tokenizer("byte"), "chat_template", "{{ other }}")
    elif change == "package":
        monkeypatch.setattr(token_cache, "_own_code", lambda: "other")
    else:
        path = str(tmp_path / "rows.jsonl")
        settings = {"train": [{"path": path, "max_examples": 5}]}
        values = {"template": "none", "cache": str(tmp_path / "cache"), **settings}
        data = DataConfig(**values)
        tokenized = tokenize(data.of(data.sources[0]), tokenizer("byte"))
        assert len(tokenized.examples) == tokenized.report.examples == 5
        assert tokenized.report.rows == 8, "reading stops at the end of the block"
        settings = None
    if settings is not None:
        cached(**settings)
    assert len(entries(tmp_path)) == 2


def test_what_does_not_change_the_tokens_is_not_in_the_fingerprint(tmp_path, cached):
    write(tmp_path, *ANSWERS)
    cached()
    cached(eval_fraction=0.5, cache_gib=1.0)
    assert len(entries(tmp_path)) == 1


def test_a_killed_process_is_continued(tmp_path, cached, monkeypatch):
    write(tmp_path, *ANSWERS)
    expected = tokenize_without(tmp_path)
    calls = []
    original = blocks.prepare_rows

    def killed(rows, *others):
        calls.append(rows.first)
        if rows.first == 4 and len(calls) == 2:
            entry = entries(tmp_path)[0]
            with (entry / "tokens").open("ab") as file:
                file.write(b"half a block")
            raise KeyboardInterrupt
        return original(rows, *others)

    monkeypatch.setattr(blocks, "prepare_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        cached()
    assert_same(cached(), expected)
    assert calls == [0, 4, 4, 8], "the first block was done"


def tokenize_without(tmp_path):
    data = DataConfig(train=str(tmp_path / "rows.jsonl"), template="none")
    return prepare(data, str(tmp_path / "rows.jsonl"), tokenizer("byte"))


def test_data_that_did_not_reach_the_disk_is_made_again(tmp_path):
    examples = tokenize_examples(tmp_path)
    writer = Writer(tmp_path)
    writer.append(examples, {"part": 1})
    writer.append(examples, {"part": 2})
    writer.close()
    os.truncate(tmp_path / "tokens", 4 * len(examples.tokens))
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"half')
    again = Writer(tmp_path)
    assert [entry["part"] for entry in again.entries] == [1]
    assert again.examples == len(examples)
    again.close()


def tokenize_examples(tmp_path):
    write(tmp_path, "x", "yy")
    return tokenize_without(tmp_path).examples


def test_bad_and_long_rows_are_counted_over_all_blocks(tmp_path, cached):
    write(tmp_path, *["" for _ in range(4)], "x", "y" * 50, "", "z", *["y" * 50 for _ in range(4)])
    report = cached(on_bad="drop", on_long="drop", max_length=16).report
    assert (report.rows, report.examples, report.bad, report.dropped) == (12, 2, 5, 5)
    # Those of the first block, and a sign that others have some, too.
    assert report.bad_examples == "row 1, row 2, row 3 and 1 more: completion is empty; ..."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"rows 5 to 8: .*row 7: completion is empty|row 7: completion is empty"),
        ({"on_bad": "drop", "max_length": 8, "on_long": "error"}, r"row 6 has \d+ tokens"),
        ({"on_bad": "drop", "max_length": 8, "on_long": "drop", "split": "train[4:7]"}, "x"),
    ],
)
def test_bad_rows_of_later_blocks_have_their_own_numbers(tmp_path, cached, settings, message):
    write(tmp_path, *["x"] * 5, "y" * 50, "", "z")
    if message == "x":
        assert cached(**settings).report.examples == 1
        return
    with pytest.raises(UserError, match=message):
        cached(**settings)
    assert entries(tmp_path) == [], "the data has to be corrected"


def test_nothing_usable_is_an_error(tmp_path, cached):
    write(tmp_path, *["y" * 50] * 6)
    with pytest.raises(UserError, match=r"longer than data\.max_length"):
        cached(on_long="drop", max_length=8)


def test_what_was_not_used_for_longest_is_deleted(tmp_path, cached, caplog):
    caplog.set_level(logging.INFO)
    for number, answers in enumerate((ANSWERS, ANSWERS[1:], ANSWERS[2:])):
        write(tmp_path, *answers)
        cached()
        (entry,) = set(entries(tmp_path)) - set(locals().get("known", ()))
        known = entries(tmp_path)
        os.utime(entry / cache_folder.DONE, (number, number))
    cache_folder._held.clear()
    size = sum(path.stat().st_size for path in entry.rglob("*"))
    cache_folder.delete_oldest(tmp_path / "cache", 2.5 * size)
    assert entry in entries(tmp_path) and 1 <= len(entries(tmp_path)) <= 2
    assert "least recently used" in caplog.text


def test_what_the_user_keeps_beside_the_cache_stays(tmp_path, cached):
    write(tmp_path, *ANSWERS)
    (tmp_path / "cache" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "mine" / "file").write_text("x" * 100)
    cached(cache_gib=1e-9)
    assert (tmp_path / "cache" / "mine" / "file").exists()


def test_what_another_process_uses_is_not_deleted(tmp_path, cached, caplog):
    write(tmp_path, *ANSWERS)
    cached()  # this process holds it, as another one would
    (entry,) = entries(tmp_path)
    held = dict(cache_folder._held)
    cache_folder._held.clear()
    cache_folder.delete_oldest(tmp_path / "cache", 0)
    assert entries(tmp_path) == [entry] and "more than data.cache_gib" in caplog.text
    for lock in held.values():
        lock.close()
    cache_folder.delete_oldest(tmp_path / "cache", 0)
    assert entries(tmp_path) == []


def test_processes_that_start_together_make_an_entry_once(tmp_path):
    """Each would append a line; complete_entry lets one of them."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make_slowly, args=(tmp_path / "entry",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "entry" / "made").read_text() == "once\n"


def _make_slowly(entry):
    def make():
        with (entry / "made").open("a") as file:
            file.write("once\n")
        (entry / cache_folder.DONE).write_text("{}")

    cache_folder.complete_entry(entry, make)


def test_small_sources_stay_out_of_the_users_cache(tmp_path, cached, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write(tmp_path, *ANSWERS)
    cached(cache="auto")
    cached(cache="off")
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr(token_cache, "LARGE", 100)
    cached(cache="auto")
    assert (tmp_path / "home" / "intel_ft" / "data").is_dir()


def several_ranks(monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_of_a_host_share_the_tokens_of_a_small_source(tmp_path, cached, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    several_ranks(monkeypatch)
    write(tmp_path, *ANSWERS)
    first = cached(cache="auto")
    monkeypatch.setattr(blocks, "prepare_rows", None)  # whoever calls it fails
    cache_folder._held.clear()
    assert_same(cached(cache="auto"), first)


def test_ranks_read_a_small_source_each_where_they_cannot_share_it(tmp_path, cached, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    several_ranks(monkeypatch)
    write(tmp_path, *ANSWERS)
    assert len(cached(cache="auto").examples) == len(ANSWERS)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cached):
    write(tmp_path, *ANSWERS)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"set data\.cache to another folder, or to off"):
        cached(cache=str(tmp_path / "file" / "cache"))


def test_blocks_of_several_processes_are_in_order(tmp_path, monkeypatch):
    write(tmp_path, *ANSWERS)
    data = DataConfig(train=str(tmp_path / "rows.jsonl"), template="none")
    rows = load_rows(str(tmp_path / "rows.jsonl"), folder=tmp_path / "table")
    task = blocks.Task(rows, data, AutoTokenizer.from_pretrained(resolve("tiny-python-llama")))
    bounds = [(start, min(start + 2, 11)) for start in range(0, 11, 2)]
    cores = os.sched_getaffinity(0)
    several = list(blocks.in_processes(task, bounds, 1, cores))
    for one, other in zip(several, blocks.blocks(task, bounds), strict=True):
        assert one.facts == other.facts
        assert np.array_equal(one.examples.tokens, other.examples.tokens)
