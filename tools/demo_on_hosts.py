"""Trains the demo's task on several hosts and prints how the losses differ from one rank's.

    python tools/demo_on_hosts.py --steps 80 --output runs/hosts

The hosts are network namespaces of this machine (tests/support/hosts.py; needs root); the launchers
are Intel MPI's and Open MPI's. Every training takes the same steps on the same examples, in bf16
with dropout 0, and is evaluated by `intel-ft eval` on the demo's validation set. The table is
Markdown. Results are appended to OUTPUT/results.jsonl and not measured again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import hosts

from intel_ft.assets import HELDOUT, MODEL, TRAIN, resolve

SCRIPTS = Path(sys.executable).parent
INTEL_FT = str(SCRIPTS / "intel-ft")
RUNS = [(1, "one rank"), (2, "mpirun"), (3, "mpirun"), (2, "mpirun.openmpi"), (3, "mpirun.openmpi")]


def train(number: int, launcher: str, steps: int) -> dict[str, Any]:
    """Train on `number` hosts and evaluate; returns the losses."""
    settings = [
        *(f"model.name_or_path={MODEL}", f"data.train={TRAIN}", "data.template=tokenizer"),
        *("method.r=16", "method.alpha=32", f"train.max_steps={steps}"),
        *("train.global_batch_size=32", "train.learning_rate=0.003", "train.logging_steps=1"),
        "output.directory=out",
    ]
    with (
        tempfile.TemporaryDirectory() as name,
        hosts.cluster(Path(name), max(number, 2)) as cluster,
    ):
        folder = Path(name) / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text("train: {report_to: []}\n", encoding="utf-8")
        chosen = cluster.hosts[:number]
        (folder / "hosts").write_text("".join(f"{host.name}\n" for host in chosen))
        command = [INTEL_FT, "train", "config.yaml", *settings]
        if number > 1:
            program = shutil.which(launcher, path=f"{SCRIPTS}:{os.environ['PATH']}")
            if program is None:
                sys.exit(f"{launcher} was not found: run `make ccl cluster`")
            command[1] = "launch"
            command += ["--hostfile", "hosts", "--ranks-per-host", "1", "--mpirun", program]
        process = cluster.hosts[0].start(
            command,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = process.communicate()[0]
        if process.returncode:
            sys.exit(
                f"{number} hosts, {launcher}: exit code {process.returncode}\n{output[-2000:]}"
            )
        run = folder / "out"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        evaluated = subprocess.run(
            [INTEL_FT, "eval", str(run), "--data", resolve(HELDOUT), "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
    return {
        "hosts": number,
        "launcher": launcher,
        "steps": steps,
        "losses": [line["loss"] for line in lines],
        "heldout_loss": json.loads(evaluated.stdout)["loss"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """A row per training, with the largest relative difference of a step's loss to one rank's."""
    text = "| hosts | started by | validation loss | largest difference of a step's loss |\n"
    text += "| ---: | --- | ---: | ---: |\n"
    alone = next(result["losses"] for result in results if result["hosts"] == 1)
    for result in results:
        pairs = zip(result["losses"], alone, strict=True)
        worst = max(abs(loss / other - 1) for loss, other in pairs)
        text += f"| {result['hosts']} | {result['launcher']} | {result['heldout_loss']:.4f} | "
        text += f"{worst:.1e} |\n"
    return text


def main() -> None:
    """Measure what is not in results.jsonl yet, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for results.jsonl")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps")
    arguments = parser.parse_args()
    if problem := hosts.why_not():
        sys.exit(f"error: {problem}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = arguments.output / "results.jsonl"
    results: list[dict[str, Any]] = []
    if record.is_file():
        results = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    results = [result for result in results if result["steps"] == arguments.steps]
    for number, launcher in RUNS:
        if any((r["hosts"], r["launcher"]) == (number, launcher) for r in results):
            continue
        results.append(train(number, launcher, arguments.steps))
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(number, launcher, results[-1]["heldout_loss"], file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
