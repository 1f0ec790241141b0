"""Which files of a folder are read: by split, by type, and as folders of `datasets` say."""

import json

import pytest

from intel_ft.errors import UserError
from intel_ft.sources.files import find_files
from intel_ft.sources.rows import load_rows


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of JSON lines files, each with one row that says the file's name."""

    def make(*names, **texts):
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"text": name}) + "\n")
        return tmp_path

    return make


def read(path, split="train"):
    return [text for (text,) in load_rows(str(path), split).cells(["text"])]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], "train test"),
        (["my-training 2.jsonl", "Dev.jsonl"], "train validation"),
        (["a_train.jsonl", "b_val.jsonl", "c.eval.jsonl.gz"], "train validation test"),
        (["train/a.jsonl", "valid/a.jsonl", "x-test/b.jsonl"], "train validation test"),
        (["data/train/0.jsonl", "data/testing/0.jsonl"], "train test"),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], "train train"),
        (["data/train_sft-00000-of-00001.jsonl", "dev_x-00000-of-00001.json"], "train_sft dev_x"),
        (["latest.jsonl", "contest.jsonl", "devices.jsonl", "strain.jsonl"], "train " * 4),
        (["train/test.jsonl", "test/train.jsonl"], "train test"),
    ],
)
def test_files_belong_to_the_split_that_their_names_say(folder, names, splits):
    path = folder(*names)
    found = find_files(path)
    of_file = {file: split for split, files in found.splits.items() for file in files}
    assert of_file == {path / n: s for n, s in zip(names, splits.split(), strict=True)}
    assert not found.unsplit


def test_only_the_asked_split_is_read_and_the_rest_is_named(folder):
    path = folder("train.jsonl", "test.jsonl", "dev.jsonl", "extra.jsonl")
    rows = load_rows(str(path))
    assert read(path) == ["train.jsonl"]
    assert rows.notes == (
        "split train (train.jsonl); not used: validation (dev.jsonl), test (test.jsonl),"
        " no split (extra.jsonl)",
    )
    assert rows.other_splits == ("validation", "test")
    assert read(path, "dev") == read(path, "validation") == ["dev.jsonl"]
    assert read(path, "train+test") == ["train.jsonl", "test.jsonl"]
    assert read(path, "test[:1]") == ["test.jsonl"]
    assert load_rows(str(path), "test").where(0) == f"{path / 'test.jsonl'} row 1"


def test_a_file_alone_is_read_whatever_its_name(folder):
    path = folder("test.jsonl", "train.jsonl")
    rows = load_rows(str(path / "test.jsonl"))
    assert read(path / "test.jsonl") == ["test.jsonl"] and rows.notes == ()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["dev.jsonl"],
            r"no split 'train' in this folder, which has validation \(dev.jsonl\): set",
        ),
        (
            ["a.jsonl", "test.jsonl"],
            r"no split 'train'.* test \(test.jsonl\), no split \(a.jsonl\)",
        ),
        (["train_test.jsonl", "x.jsonl"], "contains the splits test and train: rename it"),
        (["en/train.jsonl", "fr/train.jsonl"], "no data files in this folder, but in en, fr"),
        (["a.zip"], "a.zip has an unknown file type .zip: unpack it"),
        (["a.jsonl", "a.csv"], r"several types \(a.csv, a.jsonl\)"),
        (["a.jsonl", "a.jsonl.gz"], "several types"),
    ],
)
def test_folders_that_do_not_say_what_is_trained_are_refused(folder, names, words):
    with pytest.raises(UserError, match=words):
        load_rows(str(folder(*names)))


def test_files_that_lie_beside_data_are_not_data(folder):
    path = folder("a.jsonl", "data/b.jsonl", ".hidden.jsonl")
    for name in ("LICENSE.txt", "license-mit.txt", "README.txt", "dataset_info.json", "x.py"):
        (path / name).write_text("{}")
    rows = load_rows(str(path))
    assert read(path) == ["a.jsonl"]
    assert rows.notes == ("split train (a.jsonl); not used: no split (data/b.jsonl)",)


def test_folders_of_save_to_disk_are_read_by_their_splits(tmp_path):
    import datasets

    parts = {n: datasets.Dataset.from_dict({"text": [n, n]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/train/cache-1.arrow").write_text("x")
    rows = load_rows(str(tmp_path / "saved"))
    assert list(rows.cells(["text"])) == [("train",)] * 2 and rows.other_splits == ("test",)
    assert read(tmp_path / "saved", "test[1:]") == ["test"]
    assert read(tmp_path / "saved/test") == ["test", "test"]
    (tmp_path / "saved/train/state.json").unlink()
    with pytest.raises(UserError, match="parts are missing or damaged"):
        load_rows(str(tmp_path / "saved"))


def test_files_are_those_that_a_repository_declares(folder):
    path = folder("a1.jsonl", "a2.jsonl", "b.jsonl")
    entries = "[{split: train, path: a*.jsonl}, {split: test, path: [b.jsonl]}]"
    (path / "README.md").write_text(f"---\nconfigs:\n- data_files: {entries}\n---\n# x\n")
    assert read(path) == ["a1.jsonl", "a2.jsonl"] and read(path, "test") == ["b.jsonl"]
    two = "[{config_name: en, data_files: a1.jsonl}, {config_name: fr, data_files: b.jsonl}]"
    (path / "README.md").write_text(f"---\nconfigs: {two}\n---\n")
    with pytest.raises(UserError, match=r"declares several datasets \(en, fr\)"):
        load_rows(str(path))
    (path / "README.md").write_text("---\nconfigs: []\n---\n")
    assert read(path) == ["a1.jsonl", "a2.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "test.jsonl", "dev.jsonl"],
        ["my_train_file.jsonl", "x-valid.jsonl", "eval 2.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "testing/a.jsonl", "val/c.jsonl"],
        ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"],
        ["training.jsonl", "evaluation.jsonl", "other.jsonl"],
        ["train/test.jsonl", "test/train.jsonl"],
        ["a.jsonl", "b.jsonl", "latest.jsonl"],
    ],
)
def test_splits_are_those_of_datasets(folder, names):
    from datasets.data_files import DataFilesDict, get_data_patterns

    path = folder(*names)
    patterns = get_data_patterns(str(path))
    expected = DataFilesDict.from_patterns(patterns, base_path=str(path))
    assert {split: set(map(str, files)) for split, files in find_files(path).splits.items()} == {
        str(split): set(files) for split, files in expected.items()
    }
