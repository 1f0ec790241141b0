"""A tokenizer encodes as its tokenizer.json does, or is refused; results hold its own files."""

import json
import logging
import shutil

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from support.data_tokenizers import tokenizer
from tokenizers import Tokenizer

from intel_ft import assets
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.models.load import check_folder
from intel_ft.models.tokenizer import (
    PROBE_TEXTS,
    copy_tokenizer,
    load_tokenizer,
    model_folder,
    require_embedded,
)


@pytest.fixture
def folder(tmp_path):
    """The shipped model's tokenizer and config.json, in a folder of their own."""
    shipped = assets.resolve("tiny-python-llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(f"{shipped}/{name}", tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder):
    return load_tokenizer(ModelConfig(name_or_path=str(folder)))


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizerFast"])
def test_a_class_of_another_kind_does_not_change_the_ids(folder, name):
    """A byte-level file under Llama's class, as DeepSeek published several models."""
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = load(folder)
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
    for text in PROBE_TEXTS:
        ids = loaded.encode(text, add_special_tokens=False)
        assert ids == own.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == text


def test_a_setting_that_changes_the_ids_is_refused_or_without_effect(folder):
    """Legacy Llama files: a space in front of a text that begins with spaces."""
    backend = tokenizer("llama, prepend").backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=False)
    loaded = load(folder)
    for text in ("  hello", " hello", "hello"):
        ids = backend.encode(text, add_special_tokens=False).ids
        assert loaded.encode(text, add_special_tokens=False) == ids


def test_files_are_copied_byte_for_byte(folder, tmp_path):
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", model_max_length=9)
    (folder / "special_tokens_map.json").write_text("{ }\n")
    result = tmp_path / "result"
    result.mkdir()
    copy_tokenizer(load(folder), result)
    names = {path.name for path in result.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert all((result / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_sentencepiece_model_alone_is_refused(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match=r"copy tokenizer\.json .* from the model's page") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_token_beyond_the_embedding_is_named(folder, caplog):
    tok = load(folder)
    rows = len(tok)
    assert tok.add_tokens(["zzzq", "zzzr"]) == 2
    data = np.array([3, rows + 1, 5], np.int32)
    with pytest.raises(UserError, match=rf"{rows} rows, and 'zzzr' \({rows + 1}\) is used: re"):
        require_embedded(tok, rows, [data[:1], data])
    with caplog.at_level(logging.WARNING):
        require_embedded(tok, rows, [data[:1]])
    assert f"up to id {rows + 1}" in caplog.text
    caplog.clear()
    require_embedded(tok, rows + 2, [data])
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", r"this is a LoRA adapter.*org/base"),
        ("adapter/adapter_config.json", r"this is a LoRA adapter.*org/base"),
        ("model/config.json", r"this is a run's folder: give .*model"),
    ],
)
def test_an_adapter_or_a_run_given_as_a_model_is_named(tmp_path, name, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match=words):
        check_folder(tmp_path, ModelConfig(name_or_path=str(tmp_path)))


def test_a_model_that_cannot_be_fetched_is_told_what_is_enough(monkeypatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    absent = ModelConfig(name_or_path="nobody/nothing")
    for weights in (False, True):  # every command asks for the config first
        with pytest.raises(EnvironmentProblem, match="download the model") as raised:
            model_folder(absent, weights=weights)
        assert ("plan` needs only a folder with its config.json" in str(raised.value)) != weights
