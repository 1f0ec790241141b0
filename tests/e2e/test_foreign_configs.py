"""Ten configs of Axolotl, LLaMA-Factory, TRL and Transformers: translated, then run.

They use the documented keys, go through the command line, and train the shipped model.
"""

import json
from pathlib import Path

import pytest
import yaml
from support.harness import MODEL, metrics, run
from support.sample_rows import write_form

FOREIGN = Path(__file__).parents[1] / "unit/recipes/foreign"
DATA = {
    "axolotl-lora-8bit.yaml": "alpaca",
    "axolotl-qlora-chat.yaml": "messages",
    "axolotl-completion.yaml": "ready-made",
    "axolotl-full.yml": "question_answer",
    "llama-factory-lora-sft.yaml": "alpaca",
    "llama-factory-qlora.yaml": "alpaca",
    "llama-factory-full.yaml": "messages",
    "trl-sft.yaml": "messages",
    "trl-peft-set.yaml": "ready-made",
    "training-arguments.json": "alpaca",
}


def test_there_are_ten() -> None:
    assert sorted(DATA) == sorted(path.name for path in FOREIGN.iterdir())
    assert len(DATA) == 10


@pytest.mark.parametrize("name", DATA)
def test_translated_and_run(name, tmp_path) -> None:
    data = write_form(tmp_path, DATA[name])
    result = run("init", "--from", FOREIGN / name, "-o", "run.yaml", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    assert not any("unknown" in text for text in json.loads(result.out)["not_carried_over"]) or (
        name == "training-arguments.json"
    )
    values = yaml.safe_load((tmp_path / "run.yaml").read_text())
    few = [f"model.name_or_path={MODEL}", f"data.train={data}", "train.max_steps=2"]
    few += ["output.directory=out", "backend.threads=1", "train.logging_steps=1"]
    few.append("method.modules_to_save=[]")  # this base's head is tied to its embeddings
    few.append("train.report_to=[]")  # a tracker that was installed would ask for its account
    if "eval" in values["data"]:
        few += [f"data.eval={data}", "data.eval_split=train"]  # a file has no other split
    done = run("train", "run.yaml", *few, cwd=tmp_path)
    if "model.base_dtype=int8: this CPU has neither VNNI nor AMX" in done.err:
        assert done.code == 3
        pytest.skip("this CPU has no int8 dot products")
    assert done.code == 0, done.err
    assert [line["step"] for line in metrics(tmp_path / "out") if "loss" in line] == [1, 2]
