"""export.json: what an exported folder says about itself (docs/export.md); called from
export.openvino.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import intel_ft
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.export.context import DTYPE
from intel_ft.export.datasets import training_record
from intel_ft.export.gate import PLOT, Gate
from intel_ft.export.measure import read_summary
from intel_ft.export.ovms import Device
from intel_ft.export.recipe import public_id
from intel_ft.export.try_candidate import Attempt, Bench
from intel_ft.files import write_json

FILE = "export.json"
PACKAGES = (
    "openvino",
    "openvino-genai",
    "openvino-tokenizers",
    "optimum-intel",
    "nncf",
    "torch",
    "transformers",
)


def write_record(folder: Path, values: dict[str, Any]) -> None:
    """Write `values`, and what every record holds, to export.json in `folder`, as the last file."""
    from intel_ft.host.cpu import cpu_name

    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    write_json(
        folder / FILE,
        {
            "version": intel_ft.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
            "folder_megabytes": size,
            "packages": _versions(),
            "cpu": cpu_name(),
        },
    )


def export_record(
    bench: Bench,
    artifact: Artifact,
    attempts: list[Attempt],
    chosen: Attempt,
    gate: Gate,
    device: Device,
) -> dict[str, Any]:
    """export.json's values (docs/export.md)."""
    calibration = bench.calibration if chosen.calibrated else None
    weights = chosen.weights
    return {
        "format": chosen.row.format,
        "name": chosen.row.name,
        "kind": "merged" if artifact.kind in ("adapter", "merged") else "model",
        "base_model": public_id(artifact.base_model),
        "base_revision": artifact.base_revision,
        "template": artifact.template,
        "system_prompt": artifact.system_prompt,
        "training": training_record(artifact),
        "settings": chosen.row.settings,
        "recipe": {
            "id": chosen.recipe.id,
            "used": chosen.recipe.used,
            "why": chosen.recipe.why,
        },
        "calibration": calibration
        and {
            "source": calibration.source,
            "samples": len(calibration.rows),
            "tokens": calibration.tokens,
        },
        "quantization": asdict(weights),
        "runtime": {"device": device, **chosen.runtime},
        "megabytes": chosen.row.megabytes,
        "tokenizer_agrees": chosen.tokenizer_agrees,
        "gate": _gate_record(bench, attempts, gate),
        "adapters": [],
    }


def _gate_record(bench: Bench, attempts: list[Attempt], gate: Gate) -> dict[str, Any] | None:
    if bench.task is None:
        return None
    summary = read_summary(bench.reference) | read_json(bench.reference / DTYPE)
    examples = len(summary.pop("examples"))
    return {
        "limits": asdict(gate.limits),
        "data": {
            "source": bench.task.held_out.source,
            "examples": examples,
            "positions": summary.pop("positions"),
            "generated": summary.pop("generated"),
            "max_new_tokens": bench.task.max_new_tokens,
        },
        "reference": summary,
        "table": [one.row.record(gate.limits) for one in attempts],
        "plot": PLOT if len(attempts) > 1 else None,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
