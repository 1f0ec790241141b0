"""A run's folder as far as it can be read: what is broken or absent becomes a line in `missing`;
called from insight.report.

The folder may come from a run that was killed, or from somebody else: nothing in it is trusted.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intel_ft.errors import UserError
from intel_ft.files import damage

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
SAMPLES = "samples.jsonl"
_MOST = 20000  # characters shown of any file's text


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's optimizer steps, its size in bytes, and what is wrong with it, if anything."""

    step: int
    size: int
    problem: str | None


@dataclass(frozen=True)
class RunRecords:
    """steps: the lines of metrics.jsonl with a training loss; evaluations: those with an
    evaluation's; samples: answers before and after training, if `report --samples` wrote some.
    """

    name: str
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    environment: dict[str, Any]
    config_text: str
    config: dict[str, str]
    checkpoints: list[Checkpoint]
    samples: list[dict[str, Any]]
    finished: bool
    missing: list[str]


def read_run(folder: Path) -> RunRecords:
    """Everything in a run's folder. Raises UserError for what is no run's folder at all."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    missing: list[str] = []
    present = [n for n in ("config.yaml", "environment.json", "metrics.jsonl") if _is(folder, n)]
    if not present and not any(folder.glob("checkpoint-*")):
        raise UserError(f"{folder}: not a run's folder (no config.yaml, no metrics.jsonl)")
    lines = _json_lines(folder / "metrics.jsonl", missing)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    if lines and not steps:
        missing.append("metrics.jsonl has no training step")
    odd = sum(number(line, "loss") is None for line in steps)
    odd += sum(number(line, "eval_loss") is None for line in evaluations)
    if odd:
        missing.append(f"{odd} losses are not finite numbers: the curves have gaps there")
    if steps and not evaluations:
        missing.append("no evaluation: set data.eval or data.eval_fraction to see held-out loss")
    environment = _json_object(folder / "environment.json", missing)
    if environment and not isinstance(environment.get("data"), dict):
        missing.append("environment.json has no data statistics: an older version wrote it")
    config_text = _text(folder / "config.yaml", missing)
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        missing.append("no checkpoint")
    finished = any((folder / name).is_dir() for name in ("adapter", "model"))
    if not finished:
        missing.append("no adapter/, no model/: the run is not finished, or ended before its end")
    samples = _json_lines(folder / SAMPLES, missing) if _is(folder, SAMPLES) else []
    return RunRecords(
        name=folder.resolve().name,
        steps=steps,
        evaluations=evaluations,
        environment=environment,
        config_text=config_text[:_MOST],
        config=_flat(config_text, missing),
        checkpoints=checkpoints,
        samples=samples,
        finished=finished,
        missing=missing,
    )


def number(line: dict[str, Any], key: str) -> float | None:
    """A finite number of a record, or None; what is too large or too small to be measured, and to
    be drawn, is no number, and 0.
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
    found, broken = [], 0
    for line in _text(path, missing).splitlines():
        value = _json(line)
        if isinstance(value, dict):
            found.append(value)
        else:
            broken += 1
    if broken:
        missing.append(f"{path.name}: {broken} broken lines left out, as a kill leaves them")
    return found


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
    """`section.key` and its value, of scalars and lists of scalars."""
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
    found = []
    for path in folder.iterdir():
        match = _CHECKPOINT.fullmatch(path.name)
        if match is not None and path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append(Checkpoint(int(match[1]), size, damage(path)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)
