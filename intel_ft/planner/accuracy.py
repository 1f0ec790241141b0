"""`bench plan`: predictions of `plan` compared with real runs, over many shapes and methods.

Each case is an `intel-ft train` in a separate process, on the shipped data, with the shipped model
or with a random model that is written to a folder first.
"""

import json
import logging
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intel_ft import assets, subprocess_json
from intel_ft.bench import machine
from intel_ft.bench.workloads import WORKLOADS, Workload, random_model
from intel_ft.config import Config, build
from intel_ft.errors import UserError
from intel_ft.files import write_text
from intel_ft.planner.inputs import Cluster, inputs_of
from intel_ft.planner.plan import plan
from intel_ft.plurals import signed

logger = logging.getLogger(__name__)

TINY, DATA = "tiny-python-llama", "docstring-to-python/train.jsonl"
_TRAIN = "from intel_ft.cli.main import main; main()"
_WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """One configuration.

    shape: None is the shipped model. length: tokens in each example; None is the shipped examples
    of about 100 tokens. options: by section of the config. teacher: the shape of a model to distill
    from.
    """

    shape: Workload | None
    row_tokens: int
    batch: int
    length: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    teacher: Workload | None = None


_SMALL = WORKLOADS["small"]
_GROUPED = Workload("grouped", 2048, 5632, 4, 32, 4, 32000)
_WORDY = Workload("wordy", 1024, 3584, 4, 8, 2, 128256)
_INT8 = {"model": {"base_dtype": "int8"}}
_CHECKPOINTING = {"train": {"activation_checkpointing": True}}
_NOT_PREPACKED = {"backend": {"prepack": False}}

CASES = {
    "shipped": Case(None, 2048, 32),
    "shipped, long rows": Case(None, 8192, 96),
    "shipped, long rows, checkpointing": Case(None, 8192, 96, options=_CHECKPOINTING),
    "small": Case(_SMALL, 2048, 16),
    "small int8": Case(_SMALL, 2048, 16, options=_INT8),
    "small as loaded": Case(_SMALL, 1024, 8, options=_NOT_PREPACKED),
    "small r=128": Case(_SMALL, 1024, 8, options={"method": {"r": 128}}),
    "small checkpointing": Case(_SMALL, 4096, 32, options=_CHECKPOINTING),
    "small 1024-token examples": Case(_SMALL, 4096, 4, 1024),
    "small float32": Case(_SMALL, 1024, 8, options={"model": {"dtype": "float32"}}),
    "small dropout": Case(_SMALL, 1024, 8, options={"method": {"dropout": 0.1}}),
    "grouped": Case(_GROUPED, 1024, 8),
    "grouped int8": Case(_GROUPED, 2048, 16, options=_INT8),
    "grouped checkpointing": Case(_GROUPED, 2048, 16, options={**_CHECKPOINTING, **_NOT_PREPACKED}),
    "small full": Case(_SMALL, 1024, 8, options={"method": {"name": "full"}}),
    "small NF4": Case(_SMALL, 1024, 8, options={"method": {"name": "qlora"}}),
    "small DoRA": Case(_SMALL, 1024, 8, options={"method": {"use_dora": True}}),
    "shipped, distilled from small": Case(None, 2048, 16, teacher=_SMALL),
    "wordy": Case(_WORDY, 2048, 16),
    "wordy int8, long": Case(_WORDY, 2048, 2, 1024, options=_INT8),
}


def bench_plan(names: list[str], steps: int, threads: int | None) -> dict[str, Any]:
    """Predict and run the named cases (default: all), `steps` steps each.

    Returns {cases, machine}. Memory is in GiB. Times are seconds per step, the median without the
    first two steps. Errors are predicted / real - 1. Raises UserError, and IntelFTError if a run
    fails.
    """
    for name in names:
        if name not in CASES:
            raise UserError(f"unknown case {name!r}: choose one of {', '.join(CASES)}")
    subprocess_json.thread_environment(threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or list(CASES):
            results.append(_run_case(name, CASES[name], Path(folder), steps, threads))
            logger.info("%s", _case_line(results[-1]))
    return {"cases": results, "machine": machine.describe(threads or machine.cores())}


def _case_line(case: dict[str, Any]) -> str:
    """A case's result for the log, so that a killed benchmark leaves it behind."""
    return (
        f"{case['name']}: {case['predicted_gib']:.2f} GiB predicted, "
        f"{case['real_gib']:.2f} measured ({signed(100 * case['memory_error'])} %); "
        f"{case['predicted_s']:.3g} s predicted, "
        f"{case['real_s']:.3g} measured ({signed(100 * case['time_error'])} %)"
    )


def _run_case(
    name: str, case: Case, folder: Path, steps: int, threads: int | None
) -> dict[str, Any]:
    config = _config(case, folder, steps, threads)
    predicted = plan(inputs_of(config, Cluster(), None, time_layers=True))
    write_text(folder / "run.yaml", config.to_yaml())
    command = [sys.executable, "-c", _TRAIN, "train", str(folder / "run.yaml"), "--overwrite"]
    subprocess_json.run_command(
        f"bench plan, {name}", command, subprocess_json.thread_environment(threads)
    )
    metrics = (config.output.directory / "metrics.jsonl").read_text().splitlines()
    steps_taken = [json.loads(line) for line in metrics]
    real_gib = max(step["rss_gib"] for step in steps_taken)
    real_s = statistics.median(step["step_s"] for step in steps_taken[_WARM_UP:])
    predicted_gib, predicted_s = predicted["memory"]["total"], predicted["step"]["seconds"]
    return {
        "name": name,
        "row_tokens": predicted["memory"]["row_tokens"],
        "layout": predicted["memory"]["layout"],
        "predicted_gib": predicted_gib,
        "real_gib": real_gib,
        "memory_error": predicted_gib / real_gib - 1,
        "predicted_s": predicted_s,
        "real_s": real_s,
        "time_error": predicted_s / real_s - 1,
    }


def _config(case: Case, folder: Path, steps: int, threads: int | None) -> Config:
    values: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": TINY},
        "data": {"train": DATA},
        "train": {
            "max_steps": steps,
            "global_batch_size": case.batch,
            "max_tokens_per_row": case.row_tokens,
            "report_to": [],
        },
        "backend": {"name": "cpu", "threads": threads or "auto"},
        "output": {"directory": folder / "run"},
    }
    if case.shape is not None:
        values["model"]["name_or_path"] = str(_model_folder(case.shape, folder))
    if case.length is not None:
        values["data"] = {
            "train": str(_text_file(case.length, folder)),
            "format": "text",
            "max_length": case.length,
            "on_long": "truncate",
        }
    if case.teacher is not None:
        values["method"] = {"name": "distill", "teacher": str(_model_folder(case.teacher, folder))}
    for section, options in case.options.items():
        values[section] = values.get(section, {}) | options
    return build(values, "bench plan")


def _model_folder(shape: Workload, folder: Path) -> Path:
    """A folder with a random model of this shape and the shipped tokenizer."""
    path = folder / shape.name
    if path.exists():
        return path
    model = random_model(shape, 0, "sdpa")
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(assets.resolve(TINY)) / name, path)
    return path


def _text_file(length: int, folder: Path) -> Path:
    """A data file whose examples are plain text of more than `length` tokens each."""
    rows = Path(assets.resolve(DATA)).read_text(encoding="utf-8").splitlines()
    size = 8 * length  # characters; a token has about 3
    text = "\n".join(rows)
    parts = [text[start : start + size] for start in range(0, 64 * size, size)]
    path = folder / f"text-{length}.jsonl"
    write_text(path, "".join(json.dumps({"text": part}) + "\n" for part in parts))
    return path
