"""The functions that `intel_ft` exports: what they are, when they load, and what they pass on."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import intel_ft
from intel_ft import api
from intel_ft.errors import UserError

CONFIG = """\
model: {name_or_path: tiny-python-llama}
data: {train: docstring-to-python/train.jsonl}
output: {directory: runs/a}
"""


@pytest.mark.parametrize("name", sorted(set(intel_ft.__all__) - {"__version__", "Sampling"}))
def test_every_function_is_documented_and_typed(name) -> None:
    function = getattr(intel_ft, name)
    assert function is getattr(api, name)
    assert len(function.__doc__.splitlines()) > 1
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, intel_ft; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "openvino", "numpy", "pydantic", "yaml"} & set(loaded)


def test_export_is_the_function_after_its_package_was_imported_too() -> None:
    code = (
        "import intel_ft.export.gate\n"
        "from intel_ft import export\n"
        "from intel_ft.export.gate import Gate\n"
        "assert callable(export) and export is intel_ft.api.export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="tarin"):
        intel_ft.tarin  # noqa: B018


def test_load_config_takes_overrides_as_the_command_line_does(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    config = api.load_config(str(path), ["train.learning_rate=1e-4", f"train.max_steps={3}"])
    assert (config.train.learning_rate, config.train.max_steps) == (1e-4, 3)
    assert config.output.directory == Path("runs/a")
    with pytest.raises(UserError, match=r"did you mean train\.max_steps"):
        api.load_config(path, ["train.max_step=3"])


def test_export_passes_on_what_it_was_given(monkeypatch, tmp_path) -> None:
    from intel_ft.export import export as module

    calls = []
    monkeypatch.setattr(module, "export", lambda *args, **named: calls.append((args, named)))
    api.export(
        "run",
        tmp_path / "out",
        "int4",
        settings={"group_size": 64, "ignored_layers": ["a.*"]},
        max_ppl_increase=0.01,
        data=tmp_path / "data.jsonl",
        generate=3,
        device="NPU",
    )
    ((args, named),) = calls
    assert args == ("run", tmp_path / "out", "int4")
    settings, gate = named["settings"], named["gate"]
    assert (settings.group_size, settings.ignored_layers, settings.sym) == (64, ["a.*"], True)
    assert (gate.limits.max_ppl_increase, gate.limits.min_agreement) == (0.01, None)
    assert (gate.data, gate.generate, gate.measure) == (str(tmp_path / "data.jsonl"), 3, True)
    assert named["device"] == "NPU"
    with pytest.raises(UserError, match="group_size"):
        api.export("run", tmp_path / "out", settings={"groupsize": 64})


def test_generate_answers_in_the_order_of_the_prompts(monkeypatch) -> None:
    """Batches hold the longest prompts first; the seeds are those of `generate --input`."""
    from intel_ft.artifacts.resolve import Artifact
    from intel_ft.inference.batch_output import make_requests
    from intel_ft.runtimes.language_model import Completion, Sampling
    from intel_ft.templates.formats import Message

    batches = []

    class Engine:
        tokenizer = None

        def generate_many(self, prompts, seeds, sampling):
            batches.append(len(prompts))
            return [
                Completion(f"{len(p)} {seed}", (), 0.0, True)
                for p, seed in zip(prompts, seeds, strict=True)
            ]

    monkeypatch.setattr(
        "intel_ft.templates.prompt.prompt_encoder",
        lambda *_: lambda messages: list(range(len(messages[-1].content))),
    )
    monkeypatch.setattr(api.LoadedModel, "prompt_form", lambda *_: ("chatml", None))
    loaded = api.LoadedModel(Artifact("base", "x", "x"), Engine())
    prompts = ["aa", "bbbbb", "c", "dddd", "eee"]
    answers = api.generate(loaded, prompts, sampling=Sampling(seed=7), batch_size=2)
    seeds = [r.seed for r in make_requests([(Message("user", p),) for p in prompts], 1, 7)]
    wanted = [f"{len(p)} {seed}" for p, seed in zip(prompts, seeds, strict=True)]
    assert [answer.text for answer in answers] == wanted
    assert batches == [2, 2, 1]
