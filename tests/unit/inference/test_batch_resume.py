"""Answers of another model are not joined to those that a killed run has written."""

import json
import os

import pytest

from intel_ft.errors import UserError
from intel_ft.inference.batch_output import make_requests, model_files, write_answers
from intel_ft.templates.formats import Message


def test_a_run_that_was_trained_again_is_another_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/adapter", "base"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    path = tmp_path / "run" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "base"}))

    def engine(_):
        raise KeyboardInterrupt
        yield

    def answer(resume):
        requests = make_requests([(Message("user", "hi"),)], 1, 0)
        settings = {"asked": "run", "files": model_files("run", None)}
        write_answers(tmp_path / "out", requests, engine, settings, resume=resume)

    with pytest.raises(KeyboardInterrupt):
        answer(False)
    with pytest.raises(KeyboardInterrupt):
        answer(True)
    for changed in (path, tmp_path / "base" / "config.json"):
        facts = changed.stat()
        os.utime(changed, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        with pytest.raises(UserError, match="a different state of the model's files"):
            answer(True)
        os.utime(changed, ns=(facts.st_atime_ns, facts.st_mtime_ns))
