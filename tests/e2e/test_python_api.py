"""docs/python.md: its examples as a user's script, and what they leave."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.harness import DATA, shortest_examples

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openvino_genai", "nncf", "optimum")),
    reason="needs the openvino extra",
)


def blocks(language: str) -> list[str]:
    """The code of the page in one language."""
    text = PAGE.read_text(encoding="utf-8")
    return [code for name, code in BLOCK.findall(text) if name == language]


@pytest.mark.timeout(1200)  # several minutes where two slow cores do other things, too
def test_the_page_runs_as_it_stands(tmp_path) -> None:
    """Fewer steps and the shortest examples; all else is the page's own."""
    (config,) = blocks("yaml")
    fewer = config.replace("max_steps: 40", "max_steps: 6")
    assert fewer != config
    (tmp_path / "run.yaml").write_text(fewer, encoding="utf-8")
    data = tmp_path / DATA.parent.name  # a local path is taken in place of the shipped one
    data.mkdir()
    shortest_examples(data / "train.jsonl", 0, 200)
    shortest_examples(data / "heldout.jsonl", 200, 220)
    code = blocks("python")
    (tmp_path / "page.py").write_text("\n".join(code), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    losses = {
        line.split()[0]: float(line.split()[1]) for line in printed if line.startswith("runs/")
    }
    assert set(losses) == {"runs/0.0003", "runs/0.001", "runs/0.003"}
    best = min(losses, key=losses.__getitem__)
    assert f"best: {best}" in printed
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").iterdir()] == [best]
    before, after = map(float, value(printed, "loss before and after").split())
    assert after < before
    assert after == pytest.approx(losses[best], rel=0.01)
    assert 0 <= float(value(printed, "relative error of the logits")) < 0.1
    assert value(printed, "exported").startswith("int8 ")
    assert (tmp_path / "openvino" / "openvino_model.xml").is_file()
    gate = json.loads((tmp_path / "openvino" / "export.json").read_text(encoding="utf-8"))["gate"]
    assert gate["table"][-1]["passed"]
    assert value(printed, "answer")
    assert sum(line.startswith("sampled: ") for line in printed) == 2
    assert "did you mean train.learning_rate?" in value(printed, "refused")


def value(printed: list[str], name: str) -> str:
    """What the page printed behind `name: `."""
    (line,) = [line for line in printed if line.startswith(f"{name}: ")]
    return line.removeprefix(f"{name}: ")
