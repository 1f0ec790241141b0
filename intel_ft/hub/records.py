"""What is recorded about a model: its training, its export, its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir import IRWeights, read_weights
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.errors import UserError
from intel_ft.optional_packages import require_openvino
from intel_ft.training.run_record import read_training

EXPORT = "export.json"
_ENVIRONMENT = ("packages", "cpu", "isa", "ranks")  # what the card shows; never the host


@dataclass(frozen=True)
class Records:
    """The records; None where there is none.

    `training` has the keys of export.json's entry of that name (docs/export-json.md), `environment`
    those of a run's environment.json that do not identify the machine; `export` is the whole
    export.json; `weights` are read from the IR itself.
    """

    training: dict[str, Any] | None
    environment: dict[str, Any] | None
    export: dict[str, Any] | None
    weights: IRWeights | None


def read_records(artifact: Artifact, run: Path | None) -> Records:
    """The records of `artifact`; `run` is the run's folder where it is not the adapter's parent.

    Raises UserError where records contradict the folder: a run on another base model, an
    export.json that belongs to another IR.
    """
    if run is None and (artifact.folder.parent / "config.yaml").is_file():
        run = artifact.folder.parent if artifact.kind == "adapter" else None
    training = environment = None
    if run is not None:
        training = read_training(run)
        environment = _select(read_json(run / "environment.json"), _ENVIRONMENT)
        base = str(training["config"]["model"]["name_or_path"])
        if Path(base).name != Path(artifact.base_model).name:
            raise UserError(
                f"{run}: this run trained {base}, but {artifact.folder} has another base model "
                f"({artifact.base_model})"
            )
    if artifact.kind != "openvino":
        return Records(training, environment, None, None)
    require_openvino("openvino")
    try:
        weights = read_weights(artifact.folder)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{artifact.folder}: OpenVINO cannot read this IR: {reason}") from None
    export = read_json(artifact.folder / EXPORT) or None
    if export is not None:
        if (export.get("quantization") or {}).get("elements") != weights.elements:
            raise UserError(
                f"{artifact.folder / EXPORT}: does not match the IR in its folder: export it again"
            )
        training = training or export.get("training")
    return Records(training, environment, export, weights)


def _select(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
