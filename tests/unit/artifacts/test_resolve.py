"""Folders and ids are recognized; anything else is an error of one line."""

import json
from pathlib import Path

import pytest

from intel_ft.artifacts.model_folder import write_base_id
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import UserError


def _touch(folder: Path, name: str, text: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_kinds(tmp_path) -> None:
    adapter = _touch(tmp_path / "run" / "adapter", "adapter_config.json")
    Provenance("adapter", "org/base", "r1", "llama2", None, "0").save(adapter)
    for given in (adapter, adapter.parent):
        artifact = resolve(str(given))
        assert (artifact.kind, artifact.location, artifact.base_model) == (
            "adapter",
            str(adapter),
            "org/base",
        )
        assert (artifact.base_revision, artifact.template) == ("r1", "llama2")

    foreign = _touch(
        tmp_path / "foreign", "adapter_config.json", '{"base_model_name_or_path": "org/b"}'
    )
    assert resolve(str(foreign)).base_model == "org/b"
    assert resolve(str(foreign)).template is None

    model = _touch(tmp_path / "model", "config.json")
    assert (resolve(str(model)).kind, resolve(str(model)).base_model) == ("base", str(model))
    Provenance("merged", "org/base", None, "alpaca", None, "0").save(model)
    assert (resolve(str(model)).kind, resolve(str(model)).base_model) == ("merged", "org/base")

    ir = _touch(_touch(tmp_path / "ir", "openvino_model.xml"), "config.json")
    write_base_id(ir, "org/base")
    assert (resolve(str(ir)).kind, resolve(str(ir)).base_model) == ("openvino", "org/base")
    assert json.loads((ir / "config.json").read_text()) == {"_name_or_path": "org/base"}

    assert resolve("org/name").kind == "base"
    assert resolve("gpt2").location == "gpt2"


def test_refusals(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _touch(tmp_path / "empty" / "inside", "note.txt")
    _touch(tmp_path / "unfinished", "config.yaml")
    _touch(tmp_path / "nameless", "adapter_config.json")
    _touch(tmp_path / "broken", "adapter_config.json", "{")
    for given, words in {
        str(tmp_path / "gone"): "no such folder",
        "./gone": "no such folder",
        "empty/gone": "no such folder",
        "empty/inside/note.txt": "is a file",
        "empty": "no model here",
        "unfinished": "has not finished.*--resume",
        "nameless": "does not name its base",
        "broken": "cannot be read as JSON",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            resolve(given)
        assert "\n" not in str(caught.value)
