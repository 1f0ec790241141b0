"""An interrupted export resumes with what it had made of the same model, data and settings only."""

import json
import os
import shutil

import pytest
from support.harness import write_config

from intel_ft.artifacts.resolve import Artifact
from intel_ft.export import try_candidate
from intel_ft.export.context import ExportContext
from intel_ft.export.export import _workspace_key
from intel_ft.export.gate import Gate
from intel_ft.export.ladder import Candidate
from intel_ft.quantization import Settings


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's adapter, its base and its data, in relative paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "run/adapter", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("train", "eval", "named", "calibration"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    write_config(
        tmp_path / "run" / "config.yaml",
        model={"name_or_path": "base"},
        data={"train": "train.jsonl", "eval": "eval.jsonl"},
    )
    return Artifact("adapter", "run/adapter", "base")


def key(run):
    gate = Gate(data="named.jsonl", reference="other")
    return json.dumps(_workspace_key(run, None, gate, "calibration.jsonl", Settings()))


@pytest.mark.parametrize(
    "changed",
    [
        *("base/config.json", "run/adapter/config.json", "other/config.json", "train.jsonl"),
        *("eval.jsonl", "named.jsonl", "calibration.jsonl", "run/config.yaml"),
    ],
)
def test_an_export_is_another_one_where_a_file_that_it_read_has_changed(run, tmp_path, changed):
    before = key(run)
    assert key(run) == before
    path = tmp_path / changed
    if changed == "run/config.yaml":
        write_config(
            path,
            model={"name_or_path": "base"},
            data={"train": "train.jsonl", "eval": "eval.jsonl", "system_prompt": "Be brief."},
        )
    else:
        facts = path.stat()
        path.write_text(path.read_text())
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert key(run) != before


def test_a_candidate_is_built_again_with_other_settings(tmp_path, monkeypatch):
    """It was built, and the export was killed before it was measured."""
    (tmp_path / "fp16").mkdir()
    (tmp_path / "fp16" / "config.json").write_text("{}")
    made = []

    def quantize(_, partial, options, *__, **___):
        made.append(options["group_size"])
        (partial / "weights").write_text(str(options["group_size"]))

    def options(_, candidate):
        return None, {"group_size": candidate.settings.group_size}, None

    monkeypatch.setattr(try_candidate, "quantize", quantize)
    monkeypatch.setattr(try_candidate, "_choose_options", options)
    context = ExportContext(
        tmp_path, ["base"], tmp_path / "fp16", None, None, tmp_path, trust_remote_code=False
    )
    for size in (64, 64, 128, 128):
        settings = Settings(group_size=size, recipe="none")
        try_candidate.ensure_built(context, Candidate("int4", "int4", settings))
        assert (context.folder("int4") / "weights").read_text() == str(size)
    assert made == [64, 128]
    shutil.rmtree(context.folder("int4"))
    try_candidate.ensure_built(context, Candidate("int4", "int4", settings))
    assert made == [64, 128, 128]
