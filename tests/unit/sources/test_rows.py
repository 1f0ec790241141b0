import bz2
import errno
import gzip
import json
import lzma
import sys

import pytest

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import read_conversations
from intel_ft.errors import EnvironmentProblem, MissingPackage, UserError
from intel_ft.sources.rows import load_rows

ROWS = [{"question": "a, b?", "answer": "42"}, {"question": "when?\nsay", "answer": "2020-01-01"}]


def cells(source, *columns):
    return list(load_rows(str(source)).cells(columns))


def refusal(source, split="train"):
    with pytest.raises(UserError) as caught:
        load_rows(str(source), split)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    return str(caught.value)


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    expected = [(row["question"], row["answer"]) for row in ROWS]
    for name in ("rows.csv", "rows.parquet", "rows.json", "rows.jsonl", "bom.json"):
        assert cells(tmp_path / name, "question", "answer") == expected, name


def test_compressed_files_are_unpacked(tmp_path):
    import pyarrow

    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    packed = {
        "rows.jsonl.gz": gzip.compress(text),
        "rows.jsonl.bz2": bz2.compress(text),
        "rows.ndjson.xz": lzma.compress(text),
        "rows.json.zst": pyarrow.compress(text, codec="zstd", asbytes=True),
    }
    expected = [(row["question"], row["answer"]) for row in ROWS]
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
        assert cells(tmp_path / name, "question", "answer") == expected, name
        (tmp_path / "named-otherwise.jsonl").write_bytes(data)
        assert cells(tmp_path / "named-otherwise.jsonl", "question", "answer") == expected
        (tmp_path / name).write_bytes(text)
        assert cells(tmp_path / name, "question", "answer") == expected
        (tmp_path / name).write_bytes(data[:-9])
        assert "cannot be unpacked" in refusal(tmp_path / name)


def test_cells_may_be_separated_by_other_characters(tmp_path):
    for separator, name in ((";", "a.csv"), ("\t", "b.csv"), ("|", "c.csv"), ("\t", "d.tsv")):
        text = f'question{separator}answer\n"a{separator}b"{separator}1, 2\n'
        (tmp_path / name).write_text(text)
        rows = load_rows(str(tmp_path / name))
        assert list(rows.cells(["question", "answer"])) == [(f"a{separator}b", "1, 2")]
    assert load_rows(str(tmp_path / "a.csv")).notes == ("the cells of a.csv are separated by ';'",)
    (tmp_path / "one.csv").write_text("text\na;b|c\n")
    assert cells(tmp_path / "one.csv", "text") == [("a;b|c",)]


def test_columns_like_those_of_an_agents_log_are_a_table(tmp_path):
    """`datasets` would ask for the package teich."""
    row = dict.fromkeys(("id", "source", "model", "system_prompt"), "x")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**row, "messages": [{"role": "user", "content": "y"}]}) + "\n")
    assert cells(file, "source", "messages") == [("x", [{"role": "user", "content": "y"}])]


def test_text_that_looks_like_dates_or_numbers_stays_text(tmp_path):
    file = tmp_path / "dates.jsonl"
    file.write_text('{"question": "1999-12-31", "answer": "2020-01-02T10:00:00"}\n')
    assert cells(file, "question", "answer") == [("1999-12-31", "2020-01-02T10:00:00")]
    turns = [{"role": "user", "content": "2020-01-01"}, {"role": "assistant", "content": "x"}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    read = read_conversations(load_rows(str(file)), DataConfig(train=str(file)))
    assert read.conversations[0].messages[0].content == "2020-01-01"
    csv = tmp_path / "numbers.csv"
    csv.write_text("question,answer\n1,2020-01-01\nNA,3.0\n")
    assert cells(csv, "question", "answer") == [("1", "2020-01-01"), ("NA", "3.0")]


def test_a_text_file_gives_its_paragraphs(tmp_path):
    file = tmp_path / "poems.txt"
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\n\n\nthree\r\n\r\n\r\n\r\n  four\n")
    assert cells(file, "text") == [("one\ntwo",), ("three",), ("  four",)]


def test_a_missing_key_or_column_is_none(tmp_path):
    file = tmp_path / "gaps.jsonl"
    file.write_text('{"a": "x"}\n{"b": "y"}\n')
    assert cells(file, "a", "b", "c") == [("x", None, None), (None, "y", None)]


def test_a_folder_of_one_kind(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "3"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n{"text": "2"}\n')
    (tmp_path / "README.md").write_text("not data")
    rows = load_rows(str(tmp_path))
    assert [text for (text,) in rows.cells(["text"])] == ["1", "2", "3"]
    assert rows.where(2) == f"{tmp_path / 'b.jsonl'} row 1"
    (tmp_path / "c.csv").write_text("text\n4\n")
    assert "a.jsonl, b.jsonl, c.csv" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no data files" in refusal(tmp_path / "empty")


def test_a_file_that_changed_is_read_again(tmp_path):
    import os

    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "old"}\n')
    before = file.stat()
    assert cells(file, "text") == [("old",)]
    file.write_text('{"text": "new"}\n')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cells(file, "text") == [("new",)]


def test_slices_and_unknown_splits(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(5)))
    rows = load_rows(str(file), "train[1:3]")
    assert list(rows.cells(["text"])) == [("1",), ("2",)]
    assert rows.where(0) == f"{file} row 1 of split train[1:3]"
    assert "validation" in refusal(file, "validation")
    assert "train[oops" in refusal(file, "train[oops")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.json", b"", "is empty"),
        ("blank.jsonl", b"\n \n", "is empty"),
        ("none.json", b"[]", "no rows"),
        ("header.csv", b"question,answer\n", "no rows"),
        ("broken.jsonl", b'{"a": "x"}\n{"a": "y"\n{"a": "z"}\n', "line 2 is invalid JSON"),
        ("broken.json", b'[{"a": "x"},\n\n{"a": "y"]', "line 3 is invalid JSON"),
        ("cut.json", b'[{"a": "x"},\n{"a": "y', "line 2 is invalid JSON"),
        ("number.json", b"3", "line 1 is not a JSON object"),
        ("list.json", b'[{"a": "x"}, 3]', "row 2 is not a JSON object"),
        ("half.jsonl", b'{"a": "x"}\n{"a": "\\ud800"}\n', "line 2 has half of a surrogate"),
        ("latin.jsonl", '{"a": "x"}\n{"a": "é"}\n'.encode("latin1"), "line 2 (byte 18 of"),
        ("latin.json", '[{"a": "é"}]'.encode("latin1"), "line 1 (byte 8 of"),
        ("latin.csv", "q,a\nx,é\n".encode("latin1"), "line 2 (byte 6 of"),
        ("latin.txt", "\né".encode("latin1"), "line 2 (byte 1 of"),
        ("utf16.json", '[{"a": "x"}]'.encode("utf-16"), "`iconv -f UTF-16 -t"),
        ("utf32.csv", "q,a\nx,y\n".encode("utf-32"), "`iconv -f UTF-32 -t"),
        ("nomark.txt", "some text".encode("utf-16-le"), "`iconv -f UTF-16LE -t"),
        ("nomark.jsonl", '{"a": "x"}'.encode("utf-16-be"), "`iconv -f UTF-16BE -t"),
        ("windows.jsonl", b'{"a": "it\x92s"}\n', "`iconv -f WINDOWS-1252 -t"),
        ("more.jsonl", b'{"a": "x"}\n{\n\n{\n{\n{\n', "line 2 is invalid JSON (Ex"),
        ("many.jsonl", b'{"a": "x"}\n{\n\n{\n{\n{\n', ", ...: 4 of 5 lines are bad"),
        (
            "mixed.jsonl",
            '{"a": "é"}\n'.encode() + b'{"a": "\xe9"}\n',
            "line 2 (byte 19 of the file) is",
        ),
        ("mixed.csv", "q,a\né,x\n".encode() + b"y,\xe9\n", "although other lines are: correct"),
        ("zip.csv", b"PK\x03\x04\x14\x00\x00\x00", "is a ZIP archive or an Excel file"),
        ("lfs.txt", b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull`"),
        ("page.jsonl", b"\n<!DOCTYPE html>", "is an HTML page"),
        ("rows.gz", b"x", "the name does not say the type"),
        ("rows.tar.gz", b"x", "unpack it"),
        ("ragged.csv", b"q,a\nx,y\nx,y,z\n", "line 3 has 3 cells, but the header has 2"),
        ("cells.csv", b"q;a\nx;y;z\n", "quotes around cells that contain the separator ';'"),
        ("twice.csv", b"q,q\nx,y\n", "line 1 has two columns of the same name"),
        ("junk.parquet", b"PAR1 but no more", "not a Parquet file"),
        ("rows.xlsx", b"x", "unknown file type .xlsx"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, capfd, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_no_such_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "rows.jsonl")
    assert "no such file" in refusal("rows")
    assert "no such file" in refusal("data/rows.jsonl")


def test_the_hub_out_of_reach(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match=r"nobody/nothing: .*the Hub cannot be reached"):
        load_rows("nobody/nothing")


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (RuntimeError("Cannot send: the client has been closed."), EnvironmentProblem, "the Hub"),
        (ConnectionError("no"), EnvironmentProblem, "the Hub cannot be reached"),
        (ValueError("Config name is missing.\nPick one: a, b"), UserError, "org/name:config"),
        (ValueError('Unknown split "x"'), UserError, "Unknown split"),
        (RuntimeError("Dataset scripts are no longer supported"), UserError, "scripts"),
    ],
)
def test_what_the_hub_says_is_one_line(monkeypatch, raised, kind, words):
    import datasets

    def load_dataset(name, config, split, revision):
        assert (name, config, split, revision) == ("org/name", "small", "train[:9]", "v1.0")
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind) as caught:
        load_rows("org/name@v1.0:small", "train[:9]")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_the_hub_stays_text_and_other_splits_are_named(tmp_path, monkeypatch):
    import datasets

    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text("question,answer\nq,007\nNA,012\n")
    (tmp_path / "data/test.csv").write_text("question,answer\nq,1\n")
    load_dataset = datasets.load_dataset

    def from_folder(name, config, **options):
        return load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    rows = load_rows("org/name")
    assert list(rows.cells(["question", "answer"])) == [("q", "007"), ("NA", "012")]
    assert rows.notes == ("split train; not used: split test",) and rows.other_splits == ("test",)


def test_a_full_disk_is_not_blamed_on_the_data(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*arguments, **options):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(EnvironmentProblem, match=r"no space left in .* set TMPDIR"):
        load_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_missing_package_is_not_blamed_on_the_file(tmp_path, monkeypatch, name):
    file = tmp_path / name
    file.write_text('{"text": "x"}\n' if name.endswith("jsonl") else "text\nx\n")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match="package datasets is not installed") as caught:
        load_rows(str(file))
    assert caught.value.exit_code == 3 and str(file) not in str(caught.value)


def test_a_package_that_a_reader_lacks_is_not_blamed_on_the_data(tmp_path, monkeypatch):
    """`datasets` imports some readers late and wraps what they raise."""
    import datasets

    def load_dataset(*arguments, **options):
        try:
            raise ModuleNotFoundError("No module named 'polars'", name="polars")
        except ModuleNotFoundError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    for source in (str(tmp_path / "rows.jsonl"), "org/name"):
        with pytest.raises(MissingPackage, match="package polars is not installed"):
            load_rows(source)


def test_duplicate_keys_and_files_with_different_columns_are_refused(tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"instruction": "q", "output": "a", "output": "b"}\n')
    with pytest.raises(UserError, match=r"twice\.jsonl: a row has the key output twice"):
        load_rows(str(twice))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, column in (("a", "text"), ("b", "prompt")):
        (folder / f"{name}.jsonl").write_text(f'{{"{column}": "x"}}\n')
    with pytest.raises(UserError, match="its files have different columns"):
        load_rows(str(folder))
