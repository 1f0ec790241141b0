"""Mistakes in methods, teachers, trackers and callbacks, each reported by `validate` in one line.

A correct callback of the user is called, and its state is restored when a run resumes.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.harness import MODEL, run, shortest_examples, write_config

COUNTER = """
import json
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Counter(TrainerCallback, ExportableState):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1

    def on_train_end(self, args, state, control, **_):
        Path("count.json").write_text(json.dumps(self.steps))

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


class Broken(TrainerCallback):
    def __init__(self, needed):
        pass


NoCallback = dict
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    shortest_examples(tmp_path / "train.jsonl", 0, 12)
    write_config(tmp_path / "config.yaml")
    (tmp_path / "mine.py").write_text(COUNTER)
    return tmp_path


def refused(folder: Path, code: int, *parts: str, arguments, verb: str = "validate") -> None:
    result = run(verb, "config.yaml", *arguments, cwd=folder)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.last_line.startswith("error: ")
    for part in parts:
        assert part in result.last_line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("[nosuch_module:X]", ["nosuch_module:X", "ModuleNotFoundError"]),
        ("[mine:Missing]", ["mine:Missing", "no subclass of transformers.TrainerCallback"]),
        ("[mine:NoCallback]", ["mine:NoCallback", "no subclass"]),
        ("[mine]", ["mine", "write it as module:Class"]),
    ],
)
def test_a_callback_that_is_none(folder, value, parts) -> None:
    refused(folder, 2, "train.callbacks", *parts, arguments=[f"train.callbacks={value}"])


def test_a_package_that_a_callback_imports_is_named(folder) -> None:
    (folder / "mine.py").write_text("import nosuch_package\n" + COUNTER)
    arguments = ["train.callbacks=[mine:Counter]"]
    refused(folder, 3, "nosuch_package", "pip install", arguments=arguments)


def test_a_callback_that_cannot_be_made(folder) -> None:
    arguments = ["train.callbacks=[mine:Broken]"]
    refused(folder, 2, "mine:Broken", "TypeError", "needed", arguments=arguments)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(folder, tracker) -> None:
    if find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    parts = ("train.report_to", tracker, "not installed", "pip install")
    refused(folder, 3, *parts, arguments=[f"train.report_to=[{tracker}]"])


def test_nf4_without_bitsandbytes(folder) -> None:
    if find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    refused(folder, 3, "bitsandbytes", "model.base_dtype=int8", arguments=["method.name=qlora"])


def test_a_teacher_of_other_words(folder) -> None:
    teacher = folder / "teacher"
    shutil.copytree(MODEL, teacher)
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    (one, a), (other, b) = list(words.items())[500:502]
    words |= {one: b, other: a}
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    arguments = ["method.name=distill", "method.teacher=teacher"]
    refused(folder, 2, "method.teacher", "different vocabulary", repr(one), arguments=arguments)


@pytest.mark.parametrize(
    ("teacher", "file", "part"),
    [
        ("tuned", "adapter_config.json", "is an adapter: merge it"),
        ("run", "adapter/adapter_config.json", "is an adapter: merge it"),
        ("nothing", "", "no config.json"),
    ],
)
def test_a_teacher_that_is_no_whole_model(folder, teacher, file, part) -> None:
    path = folder / teacher / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / teacher).mkdir(exist_ok=True)
    if file:
        path.write_text("{}")
    arguments = ["method.name=distill", f"method.teacher={teacher}"]
    refused(folder, 2, teacher, part, arguments=arguments)


def test_a_callback_is_called_and_goes_on_where_it_was(folder) -> None:
    arguments = ["train.callbacks=[mine:Counter]", "train.max_steps=4"]
    result = run("train", "config.yaml", *arguments, cwd=folder)
    assert result.code == 0, result.err
    assert (folder / "count.json").read_text() == "4"
    shutil.rmtree(folder / "out/adapter")
    shutil.rmtree(folder / "out/checkpoint-4")
    (folder / "count.json").unlink()
    result = run("train", "config.yaml", *arguments, "--resume", cwd=folder)
    assert result.code == 0, result.err
    assert (folder / "count.json").read_text() == "4"
