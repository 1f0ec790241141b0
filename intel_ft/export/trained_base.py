"""The int4 base that adapters were trained on, taken as it is, and proof that it is that one."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.int4_base import RECORD, find_int4_base, read_record, trained_int4
from intel_ft.artifacts.ir import ir_megabytes
from intel_ft.artifacts.ir_weights import digest_of, read_compressed
from intel_ft.artifacts.resolve import Artifact
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.base import make_base
from intel_ft.export.context import ExportContext, ModelToExport
from intel_ft.export.gate import GateRow
from intel_ft.export.recipe import QuantizationRecipe
from intel_ft.export.run_data import run_config
from intel_ft.export.try_candidate import CandidateResult
from intel_ft.export.verify import verify
from intel_ft.export.workspace import stage
from intel_ft.quantization import Format, Settings, base_format
from intel_ft.versions import installed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Equality:
    """What was compared, all of it equal: layers and single weights, and their digest."""

    layers: int
    weights: int
    sha256: str


def common_int4(
    artifacts: list[Artifact], weight_format: Format, settings: Settings, calibration: str | None
) -> str | None:
    """The digest of the int4 weights that all adapters were trained on; None where none was.

    Raises UserError where they were trained on different weights, or where the export asks for
    other weights than those.
    """
    digests = {artifact.location: trained_int4(artifact.folder) for artifact in artifacts}
    first, digest = next(iter(digests.items()))
    for location, other in digests.items():
        if other != digest:
            raise UserError(
                f"{location} and {first} were trained on different weights "
                "(model.base_dtype=int4): export them to separate folders"
            )
    if digest is None:
        return None
    trained = _format_of(artifacts[0], digest)
    chosen = [*settings.model_dump(exclude_unset=True), *(["calibration"] if calibration else [])]
    if weight_format != trained or chosen:
        what = f"--format {weight_format}" if weight_format != trained else chosen[0]
        raise UserError(
            f"{first}: it was trained on {trained} weights, which are exported unchanged: use"
            f" --format {trained} without settings, not {what}"
        )
    return digest


def _format_of(artifact: Artifact, digest: str) -> Format:
    """The format of the weights with this digest, which the adapter was trained on."""
    cached = find_int4_base(digest)
    if cached is not None:
        return base_format(read_record(cached))
    config = run_config(artifact)
    return "int4" if config is None else base_format(config.model.quantization)


def take_trained_base(
    source: ModelToExport, work: Path, digest: str
) -> tuple[ExportContext, CandidateResult]:
    """Copy the compressed base with this digest into `work`, and verify it.

    It is made again if it is no longer in the cache. Raises UserError if it cannot be made, or if
    the installed versions compress to other weights.
    """
    name = weight_format = _format_of(source.artifact, digest)
    folder = stage(work / "candidates" / name, lambda partial: _copy(source, digest, partial))
    record = read_record(folder)
    recipe = record["recipe"]
    weights, agrees, model = verify(folder, weight_format)
    context = ExportContext(
        work=work,
        base_ids=source.base_ids(),
        fp16=folder,
        calibration=None,
        task=None,
        reference=work / "reference",
        trust_remote_code=source.trust_remote_code,
    )
    result = CandidateResult(
        row=GateRow(name, weight_format, record["settings"], ir_megabytes(folder), None),
        recipe=QuantizationRecipe(recipe["id"], recipe["used"], recipe["why"], {}),
        calibrated=False,
        weights=weights,
        tokenizer_agrees=agrees,
        runtime=model.precisions(),
    )
    return context, result


def prove_equality(folder: Path, digest: str) -> Equality:
    """Compare every compressed weight of the IR in `folder` with those trained on, by SHA-256.

    Raises IntelFTError where they differ.
    """
    weights = read_compressed(folder)
    found = digest_of(weights)
    if found != digest:
        raise IntelFTError(
            f"{folder}: its weights are not those that the adapter was trained on (SHA-256 "
            f"{found}, trained {digest})"
        )
    count = sum(tensor.shape[0] * tensor.shape[1] for tensor in weights.values())
    logger.info(
        "all %d compressed weights in %d layers equal those trained on", count, len(weights)
    )
    return Equality(len(weights), count, found)


def take_record(folder: Path) -> Any:
    """Remove the base's own record from an exported folder; returns what it was calibrated on."""
    calibration = read_record(folder)["calibration"]
    (folder / RECORD).unlink()
    return calibration


def _copy(source: ModelToExport, digest: str, partial: Path) -> None:
    cached = find_int4_base(digest)
    if cached is None:
        config = run_config(source.artifact)
        if config is None:
            raise UserError(
                f"{source.artifact.location}: the compressed weights that it was trained on are"
                " not in this machine's cache: copy that cache here, or export the run's folder,"
                " whose config is enough to recreate them"
            )
        logger.info("compressing the base again: it is no longer in the cache")
        cached = partial / "again"
        made = make_base(config, cached)
        if made != digest:
            raise UserError(
                f"{source.artifact.location}: compressing its base again gives weights that differ"
                f" from those it was trained on (nncf {installed('nncf')}, openvino"
                f" {installed('openvino')}): use the versions and the CPU that it was trained"
                " with, or copy its cache folder"
            )
    for path in cached.iterdir():
        if path.is_file():
            shutil.copyfile(path, partial / path.name)
    if cached.parent == partial:
        shutil.rmtree(cached)
