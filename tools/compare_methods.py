"""Compares all training methods on the demo's task; prints the table of docs/methods.md.

    python tools/compare_methods.py --output runs/methods --seeds 3 --steps 200
    python tools/compare_methods.py --output runs/methods --teacher models/small --seeds 3

Each training is a separate `intel-ft train`, and each loss comes from `intel-ft eval` of the
result on the bf16 base, whatever the base's dtype in training. Results are appended to
OUTPUT/results.jsonl and not measured again, so an interrupted comparison continues. The teacher is
first fine-tuned on the same task, because a model that has never seen the task has little to teach.
`lora` is the same student without a teacher.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from intel_ft import assets
from intel_ft.tables import Table

TRAIN = "docstring-to-python/train.jsonl"
HELDOUT = assets.resolve("docstring-to-python/heldout.jsonl")
STUDENT = "tiny-python-llama"

# What differs from LoRA with r=16, alpha=32 on all linear layers at a learning rate of 3e-3. A
# method with another scale or initialization has its own best learning rate (docs/methods.md).
METHODS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "rslora": ("method.use_rslora=true", "train.learning_rate=0.001"),
    "dora": ("method.use_dora=true",),
    "pissa": ("method.init=pissa", "train.learning_rate=0.0003"),
    "olora": ("method.init=olora", "train.learning_rate=0.0003"),
    "lora+": ("method.lora_plus_ratio=4", "train.learning_rate=0.0015"),
    "lora, final norm trained": ("method.modules_to_save=[norm]",),
    "full": ("method.name=full", "train.learning_rate=0.0003"),
    "qlora nf4": ("method.name=qlora",),
    "qlora int8": ("method.name=qlora", "model.base_dtype=int8"),
}
DISTILLED: dict[str, tuple[str, ...]] = {
    "distill": ("method.divergence=forward",),
    "distill, reverse": ("method.divergence=reverse",),
}


def command(arguments: argparse.Namespace, model: str, seed: int, run: Path) -> list[str]:
    """The arguments of `intel-ft train` for LoRA on the demo's task; overrides may follow."""
    config = arguments.output / "config.yaml"
    config.write_text("train: {}\n", encoding="utf-8")
    return [
        *("train", str(config), f"model.name_or_path={model}", f"data.train={TRAIN}"),
        *("data.template=tokenizer", "model.dtype=bfloat16", f"train.max_steps={arguments.steps}"),
        *("train.global_batch_size=32", "train.learning_rate=0.003", f"train.seed={seed}"),
        *("train.save_steps=1000000", "train.report_to=[]", f"output.directory={run}"),
        *("--overwrite", "--json"),
    ]


def intel_ft(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """Run `intel-ft`; its JSON output, and its peak memory in GiB."""
    script = Path(sys.executable).parent / "intel-ft"
    with subprocess.Popen([script, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"intel-ft {' '.join(arguments)} failed with exit code {process.returncode}")
    return json.loads(out), usage.ru_maxrss / 2**20


def measure(arguments: argparse.Namespace, overrides: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Train once, evaluate the result and delete it."""
    run = arguments.output / "run"
    summary, memory = intel_ft([*command(arguments, STUDENT, seed, run), *overrides])
    evaluation, _ = intel_ft(["eval", str(run), "--data", HELDOUT, "--json"])
    shutil.rmtree(run)
    return {
        "trained_parameters": summary["trained_parameters"],
        "peak_gib": memory,
        "tokens_per_s": summary["tokens_per_s"],
        "heldout_loss": evaluation["loss"],
    }


def tuned_teacher(arguments: argparse.Namespace) -> Path:
    """The teacher, fine-tuned on the same task with LoRA and merged; created only once."""
    merged: Path = arguments.output / "teacher"
    if not merged.is_dir():
        run = arguments.output / "teacher-run"
        intel_ft(command(arguments, str(arguments.teacher), 0, run))
        intel_ft(["merge", str(run), "--output", str(merged), "--json"])
        shutil.rmtree(run)
    loss = intel_ft(["eval", str(merged), "--data", HELDOUT, "--json"])[0]["loss"]
    print(f"validation loss of the fine-tuned teacher: {loss:.4f}", file=sys.stderr)
    return merged


def table(results: list[dict[str, Any]], steps: int) -> Table:
    """A row per method: the mean loss over its seeds, the median token/s."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [result for result in results if result["method"] == method]
        losses = [run["heldout_loss"] for run in runs]
        rows.append(
            (
                method,
                f"{runs[0]['trained_parameters']:,}",
                f"{max(run['peak_gib'] for run in runs):.2f}",
                f"{statistics.median(run['tokens_per_s'] for run in runs):,.0f}",
                f"{statistics.fmean(losses):.4f}",
                " ".join(f"{loss:.4f}" for loss in losses),
            )
        )
    columns = ("trained parameters", "peak GiB", "token/s", "validation loss", "each seed")
    return Table((f"{steps} steps", *columns), rows)


def main() -> None:
    """Measure what is not in results.jsonl yet, then print the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for results.jsonl")
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings of each method")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument(
        "--method", action="append", help="measure only this method; may be repeated"
    )
    parser.add_argument("--teacher", type=Path, help="a larger model with the student's tokenizer")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    methods = dict(METHODS)
    if arguments.teacher:
        teacher = tuned_teacher(arguments)
        for name, overrides in DISTILLED.items():
            named = ("method.name=distill", f"method.teacher={teacher}")
            methods[name] = (*named, *overrides)
    if unknown := set(arguments.method or ()) - set(methods):
        parser.error(f"unknown method {unknown.pop()!r}: choose one of {', '.join(methods)}")
    record = arguments.output / "results.jsonl"
    results = []
    if record.is_file():
        results = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    for seed in range(arguments.seeds):
        for method in arguments.method or methods:
            key = {"method": method, "seed": seed, "steps": arguments.steps}
            if any(key.items() <= result.items() for result in results):
                continue
            results.append(key | measure(arguments, methods[method], seed))
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), file=sys.stderr)
    print(table([r for r in results if r["steps"] == arguments.steps], arguments.steps).markdown())


if __name__ == "__main__":
    main()
