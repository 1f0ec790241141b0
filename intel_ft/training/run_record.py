"""What a run's folder says about its training, for export.json and the model card."""

import json
from pathlib import Path
from typing import Any

import yaml

from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.config import Config, load
from intel_ft.errors import UserError

RESULTS = ("adapter", "model")
SECTIONS = ("model", "data", "method", "train")
DECISIONS = ("adapted modules", "modules left frozen", "parameters per token")


def read_training(run: Path) -> dict[str, Any]:
    """The training of the run in `run`, with the keys of `training` in export.json.

    docs/export-json.md describes the keys. Paths are reduced to file names; tokens are summed over
    all steps; `train_loss` is the last one logged, `eval_loss` the best, that of the result; losses
    are nats per token. Raises UserError if `run` is not a run's folder or cannot be read.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        sections = {name: config[name] for name in SECTIONS}
        steps = [line for line in metrics if "loss" in line]
        losses = [line["eval_loss"] for line in metrics if "eval_loss" in line]
        return {
            "config": _without_paths(sections),
            "decisions": {
                decision["name"]: decision["value"]
                for decision in read_json(run / "environment.json").get("decisions", [])
                if decision["name"] in DECISIONS
            },
            "steps": max((line["step"] for line in metrics), default=0),
            "tokens": sum(line["tokens"] for line in steps),
            "supervised_tokens": sum(line["supervised_tokens"] for line in steps),
            "train_loss": steps[-1]["loss"] if steps else None,
            "eval_loss": min(losses, default=None),
            **_experts(run / "expert_load.json"),
        }
    except FileNotFoundError as error:
        raise UserError(
            f"{run}: not a run's folder, it has no {Path(error.filename).name}: give the folder"
            " that a run wrote (output.directory)"
        ) from None
    except (ValueError, KeyError, TypeError, OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{run}: its records cannot be read ({error}): restore config.yaml and metrics.jsonl"
        ) from None


def _experts(path: Path) -> dict[str, list[int]]:
    """Of a mixture's run: how many experts got no token, of how many."""
    if not path.is_file():
        return {}
    counts = [count for layer in read_json(path)["tokens"] for count in layer]
    return {"experts_without_tokens": [counts.count(0), len(counts)]}


def config_of_run(artifact: Artifact) -> Config | None:
    """The configuration of the run whose result this is; None outside a run's folder."""
    path = artifact.folder.parent / "config.yaml"
    return load(path) if artifact.folder.name in RESULTS and path.is_file() else None


def is_local(name: str) -> bool:
    """Whether the name of a model or data set is a path, not an id."""
    return name.startswith(("/", "~", ".", "\\")) or name.count("/") > 1 or Path(name).is_dir()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return (
        Path(value).name if isinstance(value, str) and "/" in value and is_local(value) else value
    )
