"""Quantize, verify and measure one candidate, or read its result from an interrupted export."""

import gc
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir import IRWeights, ir_megabytes
from intel_ft.artifacts.model_folder import write_base_id
from intel_ft.artifacts.resolve import read_json
from intel_ft.export.context import ExportContext
from intel_ft.export.gate import GateRow
from intel_ft.export.ladder import Candidate
from intel_ft.export.quantize import Calibration, quantize
from intel_ft.export.recipe import QuantizationRecipe, find_recipe, options_for, uses_data
from intel_ft.export.verify import verify
from intel_ft.export.workspace import drop_stage, stage
from intel_ft.files import write_json
from intel_ft.quantization import RECOVERY

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateResult:
    """A candidate that was built and measured; `runtime` and `recovery` as in export.json."""

    row: GateRow
    recipe: QuantizationRecipe
    calibrated: bool
    weights: IRWeights
    tokenizer_agrees: bool
    runtime: dict[str, str | None]
    recovery: dict[str, Any] | None = None


def try_candidate(context: ExportContext, candidate: Candidate) -> CandidateResult:
    """Build, verify and measure `candidate`; a result of an interrupted export is read instead."""
    recipe, options, calibration = _choose_options(context, candidate)
    if candidate.format in ("int4", "int8"):
        logger.info("%s", recipe.why)
    settings = _effective_settings(options, candidate)
    path = context.work / "candidates" / f"{candidate.name}.json"
    values = read_json(path)
    if values.get("settings") != settings:
        values = _build_and_measure(context, candidate, options, calibration)
        values["settings"] = settings
        write_json(path, values)
    quality = context.task.read_quality(values["quality"]) if context.task else None
    return CandidateResult(
        row=GateRow(
            name=candidate.name,
            format=candidate.format,
            settings=settings,
            megabytes=values["megabytes"],
            quality=quality,
        ),
        recipe=recipe,
        calibrated=calibration is not None,
        weights=IRWeights(**values["weights"]),
        tokenizer_agrees=values["tokenizer_agrees"],
        runtime=values["runtime"],
        recovery=values.get("recovery"),
    )


def ensure_built(context: ExportContext, candidate: Candidate) -> None:
    """Build the candidate's folder again where an interruption lost it after its measurement."""
    _, options, calibration = _choose_options(context, candidate)
    _build(context, candidate, options, calibration)


def _choose_options(
    context: ExportContext, candidate: Candidate
) -> tuple[QuantizationRecipe, dict[str, Any], Calibration | None]:
    """The base's recipe, the options in force, and the calibration data if they use any."""
    settings = candidate.settings
    recipe = find_recipe(context.base_ids, candidate.format, settings)
    calibrated = context.calibration is not None
    options = options_for(candidate.format, settings, recipe, calibrated)
    return recipe, options, context.calibration if uses_data(options, settings) else None


def _effective_settings(options: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The settings in export.json: the options, and the settings that are not among them."""
    settings = candidate.settings
    effective = dict(options)
    if settings.activations != "none":
        effective |= {
            "activations": settings.activations,
            "smooth_quant_alpha": settings.smooth_quant_alpha,
        }
    if settings.kv_cache != "auto":
        effective["kv_cache"] = settings.kv_cache
    if candidate.recover:
        effective |= {key: getattr(settings, key) for key in RECOVERY}
    return effective


def _build_and_measure(
    context: ExportContext,
    candidate: Candidate,
    options: dict[str, Any],
    calibration: Calibration | None,
) -> dict[str, Any]:
    folder = _build(context, candidate, options, calibration)
    gc.collect()
    weights, agrees, model = verify(folder, candidate.format)
    runtime = model.precisions()  # while it is compiled for logits
    quality = context.task.measure(model, context.reference) if context.task else None
    return {
        "megabytes": ir_megabytes(folder),
        "quality": asdict(quality) if quality else None,
        "weights": asdict(weights),
        "tokenizer_agrees": agrees,
        "runtime": runtime,
        "recovery": read_json(_recovery_file(context, candidate)) or None,
    }


def _build(
    context: ExportContext,
    candidate: Candidate,
    options: dict[str, Any],
    calibration: Calibration | None,
) -> Path:
    def write(partial: Path) -> None:
        quantize(
            context.fp16,
            partial,
            options,
            candidate.settings,
            calibration,
            trust_remote_code=context.trust_remote_code,
        )
        if candidate.recover:
            _recover(context, candidate, partial)
        for path in sorted(context.fp16.iterdir()):
            if not (partial / path.name).exists():
                shutil.copyfile(path, partial / path.name)
        write_base_id(partial, context.base_ids[0])

    folder = context.folder(candidate.name)
    made_with = folder.with_name(f"{folder.name}.settings.json")
    settings = json.loads(json.dumps(_effective_settings(options, candidate)))
    if read_json(made_with) != settings:  # of an interrupted export
        drop_stage(folder)
        for old in (_recovery_state(context, candidate), _recovery_file(context, candidate)):
            old.unlink(missing_ok=True)
        write_json(made_with, settings)
    return stage(folder, write)


def _recover(context: ExportContext, candidate: Candidate, ir: Path) -> None:
    """Tune the compressed IR in `ir`; a recovery that was killed continues."""
    from intel_ft.export.recover import recover

    assert context.tuning is not None  # prepare_context has refused an export without examples
    model = context.tuning.load()
    state = _recovery_state(context, candidate)
    recovery = recover(model, ir, context.tuning.examples, candidate.settings, state)
    logger.info(
        "%s: %d steps in %.0f s, KL on training examples %.5f at the start, %.5f at the end",
        candidate.name,
        recovery.steps,
        recovery.seconds,
        recovery.kl_start,
        recovery.kl_end,
    )
    write_json(_recovery_file(context, candidate), asdict(recovery))


def _recovery_state(context: ExportContext, candidate: Candidate) -> Path:
    return context.work / "recovery" / f"{candidate.name}.pt"


def _recovery_file(context: ExportContext, candidate: Candidate) -> Path:
    return context.work / "recovery" / f"{candidate.name}.json"
