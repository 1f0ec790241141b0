"""A run's folder, as far as it can be read: each broken or absent part is a line in `missing`.

The folder may come from a run that was killed, or from someone else: nothing in it is trusted.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intel_ft.errors import UserError
from intel_ft.files import damage
from intel_ft.plurals import count_of

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
EXAMPLES = "examples.jsonl"
SAMPLES = "samples.jsonl"
EXPERTS = "expert_load.json"
_MAX_TEXT = 20000  # characters shown of a file


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its optimizer step, size in bytes, and what is wrong with it, if anything."""

    step: int
    size: int
    problem: str | None


@dataclass(frozen=True)
class RunRecords:
    """What a run's folder holds.

    `steps` are the lines of metrics.jsonl with a training loss, `evaluations` those with a
    validation loss; `samples` are answers before and after training from `report --samples`,
    `examples` parts of training examples from `report --examples`;
    `expert_load` is that file of a mixture's run, or empty.
    """

    name: str
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    environment: dict[str, Any]
    config_text: str
    config: dict[str, str]
    checkpoints: list[Checkpoint]
    samples: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    expert_load: dict[str, Any]
    finished: bool
    missing: list[str]


def read_run(folder: Path) -> RunRecords:
    """Everything in a run's folder. Raises UserError for what is not a run's folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    missing: list[str] = []
    files = [n for n in ("config.yaml", "environment.json", "metrics.jsonl") if _is(folder, n)]
    if not files and not any(folder.glob("checkpoint-*")):
        raise UserError(f"{folder}: not a run's folder (no config.yaml, no metrics.jsonl)")
    lines = _json_lines(folder / "metrics.jsonl", missing)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    if lines and not steps:
        missing.append("metrics.jsonl has no training steps")
    not_finite = sum(number(line, "loss") is None for line in steps)
    not_finite += sum(number(line, "eval_loss") is None for line in evaluations)
    if not_finite:
        missing.append(
            f"{count_of(not_finite, 'loss', 'losses')} not finite: the curves have gaps there"
        )
    if steps and not evaluations:
        missing.append(
            "no evaluation: set data.eval or data.eval_fraction to record a validation loss"
        )
    environment = _json_object(folder / "environment.json", missing)
    if environment and not isinstance(environment.get("data"), dict):
        missing.append("environment.json has no data statistics: an older version wrote it")
    config_text = _text(folder / "config.yaml", missing)
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        missing.append("no checkpoints")
    finished = any((folder / name).is_dir() for name in ("adapter", "model"))
    if not finished:
        missing.append("neither adapter/ nor model/: the run is still going, or was stopped early")
    samples = _json_lines(folder / SAMPLES, missing) if _is(folder, SAMPLES) else []
    return RunRecords(
        name=folder.resolve().name,
        steps=steps,
        evaluations=evaluations,
        environment=environment,
        config_text=config_text[:_MAX_TEXT],
        config=_flat(config_text, missing),
        checkpoints=checkpoints,
        samples=samples,
        examples=_json_lines(folder / EXAMPLES, missing) if _is(folder, EXAMPLES) else [],
        expert_load=_json_object(folder / EXPERTS, missing) if _is(folder, EXPERTS) else {},
        finished=finished,
        missing=missing,
    )


def number(line: dict[str, Any], key: str) -> float | None:
    """A number of a record, or None where it is not finite.

    Numbers too large to be measured or drawn count as not finite, numbers too small as 0.
    """
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        return None
    return 0.0 if abs(value) < 1e-30 else float(value)


def _is(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _text(path: Path, missing: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({error.strerror})")
        return ""


def _json_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    values = [_json(line) for line in _text(path, missing).splitlines()]
    objects = [value for value in values if isinstance(value, dict)]
    if broken := len(values) - len(objects):
        missing.append(
            f"{path.name}: {count_of(broken, 'broken line')} skipped; a killed run leaves such "
            "lines"
        )
    return objects


def _json_object(path: Path, missing: list[str]) -> dict[str, Any]:
    text = _text(path, missing)
    value = _json(text)
    if isinstance(value, dict):
        return value
    if text:
        missing.append(f"{path.name} is not a JSON object")
    return {}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat(text: str, missing: list[str]) -> dict[str, str]:
    """Each `section.key` with its value, where that is a scalar or a list of scalars."""
    try:
        sections = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        missing.append("config.yaml is not valid YAML")
        return {}
    flat = {}
    for section, keys in sections.items() if isinstance(sections, dict) else ():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            parts = value if isinstance(value, list) else [value]
            if not any(isinstance(part, list | dict) for part in parts):
                flat[f"{section}.{key}"] = ", ".join(str(part) for part in parts)
    return flat


def _checkpoints(folder: Path) -> list[Checkpoint]:
    checkpoints = []
    for path in folder.iterdir():
        match = _CHECKPOINT.fullmatch(path.name)
        if match is not None and path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            checkpoints.append(Checkpoint(int(match[1]), size, damage(path)))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
