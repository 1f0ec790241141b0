"""Writes reference_trajectory.json: the losses of a short training run of the shipped tiny model.

Run it from the root of the repository, and only if a change of the losses is intended:

    python tests/invariants/reference_trajectory.py

Say in the commit why they changed. test_reference_trajectory.py compares every version with them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
CONFIG = f"""\
model: {{name_or_path: tiny-python-llama, dtype: float32}}
data: {{train: docstring-to-python/train.jsonl, max_length: 256, on_long: drop}}
method: {{r: 8, alpha: 16, dropout: 0}}
train:
  max_steps: {STEPS}
  global_batch_size: 8
  max_tokens_per_row: 512
  learning_rate: 1.0e-3
  scheduler: cosine
  warmup_ratio: 0.1
  seed: 42
  report_to: []
backend: {{name: cpu, threads: 1}}
output: {{directory: out}}
"""


def trajectory(folder: Path) -> list[float]:
    """The loss of each step of the run, which starts through the CLI in `folder`."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "intel_ft", "train", "config.yaml", "--overwrite"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = (folder / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = trajectory(Path(folder))
    FILE.write_text(json.dumps({"loss": losses}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
