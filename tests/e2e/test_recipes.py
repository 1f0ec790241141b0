"""Every recipe of configs/ is listed, copied, checked without network, and trains a few steps."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import yaml
from support.harness import MODEL, Result, metrics, run
from support.sample_rows import write_form

from intel_ft.config_method import MethodConfig
from intel_ft.recipes.shipped import FOLDER, recipes

CONFIGS = Path(__file__).parents[2] / "configs"
# In which form each recipe's real dataset comes.
DATA = {
    "text-to-python": "python",
    "medical-qa": "ready-made",
    "cli-assistant": "ready-made with a system prompt",
    "guanaco-16gb": "ready-made",
    "dolly-alpaca-full": "dolly",
    "dolly-lora": "dolly",
    "dolly-qlora": "dolly",
    "llama-3-8b": "messages",
    "qwen3": "messages",
    "mistral-1-node": "alpaca",
    "mistral-4-nodes": "alpaca",
    "distillation": "alpaca",
    "lora": "alpaca",
    "dpo": "preference",
    "orpo": "chosen and rejected",
    "kto": "judged",
}
METHODS = get_args(MethodConfig.model_fields["name"].annotation) or ("lora",)


def skip_if_not_there_yet(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["method"]
    method = values.get("name", "lora")
    if method not in METHODS:
        pytest.skip(f"method.name {method} does not exist yet: MethodConfig has {METHODS}")
    if method == "qlora" and find_spec("bitsandbytes") is None:
        pytest.skip("method.name qlora needs bitsandbytes, which is not installed")


def overrides(name: str, data: Path) -> list[str]:
    found = [f"model.name_or_path={MODEL}", f"data.train={data}"]
    if name == "distillation":
        found.append(f"method.teacher={MODEL}")
    if name == "dpo":
        found += ["data.split=train", f"data.eval={data}", "data.eval_split=train"]
    if name == "lora":
        found.append(f"data.eval={data}")
    return found


def succeeded(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def test_the_table_above_is_complete() -> None:
    assert sorted(DATA) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert [recipe.name for recipe in recipes()] == sorted(DATA)


@pytest.mark.parametrize("name", DATA)
def test_recipe_trains_on_local_model_and_data(name, tmp_path) -> None:
    skip_if_not_there_yet(name)
    data = write_form(tmp_path, DATA[name])
    succeeded(run("init", name, "-o", "run.yaml", cwd=tmp_path))
    few = ["train.max_steps=2", "train.logging_steps=1", "output.directory=out"]
    few.append("backend.threads=1")
    succeeded(run("train", "run.yaml", *overrides(name, data), *few, cwd=tmp_path))
    steps = [line["step"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert steps == [1, 2]
    assert (tmp_path / "out/config.yaml").is_file()
    trained = [tmp_path / "out/adapter", tmp_path / "out/model"]
    assert any((folder / "tokenizer.json").is_file() for folder in trained)


def test_the_cli_assistants_other_form(tmp_path) -> None:
    """Rows in columns, with the two lines that the recipe has ready as comments."""
    skip_if_not_there_yet("cli-assistant")
    data = write_form(tmp_path, "alpaca")
    text = (FOLDER / "cli-assistant.yaml").read_text()
    text = text.replace("  template: auto\n", "").replace(
        "  # template: llama2", "  template: llama2"
    )
    text = text.replace("  # system_prompt", "  system_prompt")
    (tmp_path / "run.yaml").write_text(text)
    result = run("validate", "run.yaml", *overrides("cli-assistant", data), "--json", cwd=tmp_path)
    assert json.loads(succeeded(result).out)["template"] == "llama2"


@pytest.mark.parametrize("name", DATA)
def test_recipe_is_checked_without_network(name, tmp_path) -> None:
    skip_if_not_there_yet(name)
    env = {"HF_HOME": str(tmp_path / "empty")}
    result = run("validate", FOLDER / f"{name}.yaml", "--offline", "--json", cwd=tmp_path, env=env)
    found = json.loads(succeeded(result).out)
    if name != "lora":  # that one's model and data ship with the package
        assert "not checked" in found["model"] and "not checked" in found["data.train"]
        assert "config.json" in found["model"]


def test_offline_looks_at_what_is_here(tmp_path) -> None:
    data = write_form(tmp_path, "dolly")
    recipe = FOLDER / "dolly-lora.yaml"
    result = run("validate", recipe, "--offline", *overrides("dolly-lora", data), cwd=tmp_path)
    assert "8 examples" in succeeded(result).out and "7,475,456 parameters" in result.out


def test_offline_needs_no_network_for_the_rest(tmp_path) -> None:
    """Trackers, callbacks, and a teacher that is here."""
    here = ["--offline", *overrides("dolly-lora", write_form(tmp_path, "dolly"))]
    recipe = FOLDER / "dolly-lora.yaml"
    wrong = run("validate", recipe, *here, "train.callbacks=[nowhere:Callback]", cwd=tmp_path)
    assert wrong.code == 2 and "nowhere" in wrong.last_line
    if find_spec("wandb") is None:
        tracker = run("validate", recipe, *here, "train.report_to=[wandb]", cwd=tmp_path)
        assert tracker.code == 3 and "wandb is not installed" in tracker.last_line
    for teacher, part in (
        ("nobodys/teacher", "not checked"),
        ("tiny-python-llama", "same vocabulary as the student"),
    ):
        distill = ["method.name=distill", f"method.teacher={teacher}"]
        found = succeeded(run("validate", recipe, *here, *distill, cwd=tmp_path))
        assert f"{teacher}: {part}" in found.out


def test_offline_finds_what_is_wrong_with_what_is_here(tmp_path) -> None:
    data = write_form(tmp_path, "question_answer")
    recipe = FOLDER / "dolly-lora.yaml"
    result = run("validate", recipe, "--offline", f"data.train={data}", cwd=tmp_path)
    assert result.code == 2 and "instruction and response" in result.last_line


def test_every_file_opens_with_its_command_and_explains_its_values() -> None:
    for path in CONFIGS.glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        commands = [line for line in lines[:2] if f"intel-ft train configs/{path.name}" in line]
        assert commands and lines[0] in commands, path
        values = [line for line in lines if line.startswith("  ") and ":" in line]
        assert sum("#" in line for line in values) >= len(values) / 3, path


def test_init_lists_copies_and_does_not_overwrite(tmp_path) -> None:
    listed = succeeded(run("init", cwd=tmp_path)).out
    for recipe in recipes():
        assert recipe.summary.endswith(".")
        assert f"{recipe.name} " in listed and recipe.summary in listed
    assert len(json.loads(run("init", "--json", cwd=tmp_path).out)["recipes"]) == len(DATA)
    succeeded(run("init", "dolly-lora", cwd=tmp_path))
    written = (tmp_path / "dolly-lora.yaml").read_text()
    assert written.startswith("# intel-ft train dolly-lora.yaml\n")
    (tmp_path / "dolly-lora.yaml").write_text("mine")
    again = run("init", "dolly-lora", cwd=tmp_path)
    assert again.code == 2 and "already exists" in again.last_line
    assert (tmp_path / "dolly-lora.yaml").read_text() == "mine"
    unknown = run("init", "doly", cwd=tmp_path)
    assert unknown.code == 2 and "dolly-lora" in unknown.last_line
    assert run("init", "dolly-lora", "--from", "x.yaml", cwd=tmp_path).code == 2
    assert run("init", "-o", "x.yaml", cwd=tmp_path).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".streams", "dolly-lora.yaml"]
