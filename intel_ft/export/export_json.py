"""Write export.json, the record in every exported folder (docs/export-json.md)."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import intel_ft
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.export.context import DTYPE, ExportContext
from intel_ft.export.gate import PLOT, Gate
from intel_ft.export.measure import read_summary
from intel_ft.export.ovms import Device
from intel_ft.export.recipe import public_id
from intel_ft.export.run_data import training_record
from intel_ft.export.trace import task_of
from intel_ft.export.try_candidate import CandidateResult
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
    """Write export.json in `folder`, as the last file: `values` and the keys that always apply."""
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
    context: ExportContext,
    artifact: Artifact,
    results: list[CandidateResult],
    gate: Gate,
    device: Device,
) -> dict[str, Any]:
    """The values of export.json (docs/export-json.md); the last result is the selected one."""
    selected = results[-1]
    calibration = context.calibration if selected.calibrated else None
    return {
        "format": selected.row.format,
        "name": selected.row.name,
        "task": task_of(context.fp16),
        "kind": "merged" if artifact.kind in ("adapter", "merged") else "model",
        "base_model": public_id(artifact.base_model),
        "base_revision": artifact.base_revision,
        "template": artifact.template,
        "system_prompt": artifact.system_prompt,
        "training": training_record(artifact),
        "settings": selected.row.settings,
        "recipe": {
            "id": selected.recipe.id,
            "used": selected.recipe.used,
            "why": selected.recipe.why,
        },
        "calibration": calibration
        and {
            "source": calibration.source,
            "samples": len(calibration.rows),
            "tokens": calibration.tokens,
        },
        "quantization": asdict(selected.weights),
        "runtime": {"device": device, **selected.runtime},
        "megabytes": selected.row.megabytes,
        "tokenizer_agrees": selected.tokenizer_agrees,
        "gate": _gate_record(context, results, gate),
        "adapters": [],
        **({"recovery": selected.recovery} if selected.recovery else {}),
    }


def _gate_record(
    context: ExportContext, results: list[CandidateResult], gate: Gate
) -> dict[str, Any] | None:
    if context.task is None:
        return None
    summary = read_summary(context.reference) | read_json(context.reference / DTYPE)
    return {
        "limits": asdict(gate.limits),
        "data": {"source": context.task.validation.source, **context.task.data_record(summary)},
        "reference": summary,
        "table": [result.row.record(gate.limits) for result in results],
        "plot": PLOT if len(results) > 1 else None,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
