"""Export a model to OpenVINO IR: the smallest candidate that passes the quality gate."""

import logging
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from intel_ft import __version__
from intel_ft.artifacts.fingerprints import model_state
from intel_ft.artifacts.ir import IRWeights
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.errors import GateRefused, UserError
from intel_ft.export.context import (
    ExportContext,
    ModelToExport,
    prepare_context,
    refuse_for_scores,
)
from intel_ft.export.export_json import export_record, write_record
from intel_ft.export.gate import PLOT, Gate, Limits, log_line, size_quality_plot
from intel_ft.export.ladder import Candidate, candidates
from intel_ft.export.made_from import made_from
from intel_ft.export.output import quiet
from intel_ft.export.ovms import Device, write_ovms
from intel_ft.export.recipe import public_id
from intel_ft.export.tasks import task_code
from intel_ft.export.try_candidate import CandidateResult, ensure_built, try_candidate
from intel_ft.export.workspace import drop_stage, workspace
from intel_ft.files import name_folder, write_text
from intel_ft.optional_packages import require_openvino
from intel_ft.quantization import Format, Settings

logger = logging.getLogger(__name__)

_AUTO = (Limits(max_ppl_increase=0.01), "perplexity may increase by at most 1 %")
_AUTO_SCORES = (Limits(min_agreement=0.99), "at most 1 % of the pairs may change their order")


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and its quality.

    `tokenizer_agrees`: the tokenizer IR gives the same ids as the Hugging Face tokenizer. `gate`:
    as in export.json, None where nothing was measured. `peak_gib`: peak memory of this process,
    mapped files included.
    """

    folder: str
    base_model: str
    format: Format
    name: str
    weights: IRWeights
    megabytes: float
    tokenizer_agrees: bool
    seconds: float
    peak_gib: float
    gate: dict[str, Any] | None


def export(
    source: str,
    output: Path,
    weight_format: Format | Literal["auto"],
    *,
    settings: Settings | None = None,
    calibration: str | None = None,
    gate: Gate | None = None,
    recover: bool = False,
    device: Device = "CPU",
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> ExportReport:
    """Write `source` (run, adapter, merged folder, base folder or Hub id) as an IR folder.

    An adapter is merged first (`base`: see `merge`). The candidates for `weight_format`, from small
    to large, are built, verified and measured against the model in torch on the validation set;
    the first that passes the gate is renamed to `output`. recover: tune int4 after compression, on
    the run's training examples or those of `calibration`. It opens in OVModelForCausalLM, in
    OpenVINO GenAI's LLMPipeline and in OVMS; a reward model, in OVModelForSequenceClassification.
    An interrupted export resumes after its last stage.

    Raises UserError for a source or settings that cannot be exported, EnvironmentProblem without
    the `openvino` extra, GateRefused where no candidate passes, Stopped after a signal once a
    recovery's state is saved, IntelFTError where a written IR is wrong. Nothing is left in
    `output` then.
    """
    start = time.monotonic()
    gate, settings = gate or Gate(), settings or Settings()
    artifact = resolve(source)
    if weight_format == "auto" and not gate.limits.is_set:
        limits, what = _AUTO_SCORES if artifact.is_reward_model else _AUTO
        gate = replace(gate, limits=limits)
        logger.info("auto: no limit was given, so %s", what)
    if artifact.kind == "openvino":
        raise UserError(f"{source}: this is already an OpenVINO model")
    if recover and weight_format not in ("int4", "auto"):
        raise UserError(f"--recover tunes 4-bit weights: use --format int4, not {weight_format}")
    if artifact.is_reward_model:
        refuse_for_scores(artifact, gate, settings, recover=recover)
    key = _workspace_key(artifact, base, gate, calibration, settings)
    with workspace(output, key) as work:
        with quiet():
            require_packages()
            model = ModelToExport(artifact, base, trust_remote_code, allow_pickle)
            context = prepare_context(model, work, gate, calibration, settings, recover=recover)
            ladder = candidates(weight_format, settings, recover=recover)
            results = _try_until_passed(context, ladder, gate.limits)
        record = finish_export(context, artifact, results, gate, device, settings, output)
    selected = results[-1]
    logger.info("exported %s to %s, %.1f MB", selected.row.name, output, selected.row.megabytes)
    return ExportReport(
        folder=str(output),
        base_model=artifact.base_model,
        format=selected.row.format,
        name=selected.row.name,
        weights=selected.weights,
        megabytes=selected.row.megabytes,
        tokenizer_agrees=selected.tokenizer_agrees,
        seconds=time.monotonic() - start,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        gate=record["gate"],
    )


def require_packages() -> None:
    """Raise EnvironmentProblem where a package of the `openvino` extra does not load."""
    require_openvino("openvino", "openvino_tokenizers", "openvino_genai", "nncf", "optimum.intel")
    import nncf

    # On import it sets its logger to INFO, and it logs tables.
    nncf.set_log_level(logging.ERROR)


def _workspace_key(
    artifact: Artifact, base: str | None, gate: Gate, calibration: str | None, settings: Settings
) -> dict[str, Any]:
    """What an interrupted export must have in common with this one to be resumed."""
    named = [(gate.data, gate.split or "train"), (calibration, "train")]
    return {
        **made_from(artifact, base, named),
        "source": model_state(artifact.location),
        "data": [gate.data, gate.split, gate.answers, gate.max_new_tokens, gate.measure],
        "compared": [model_state(gate.reference), gate.task, gate.task and task_code(gate.task)],
        "calibration": [calibration, settings.samples, settings.sample_tokens],
    }


def finish_export(
    context: ExportContext,
    artifact: Artifact,
    results: list[CandidateResult],
    gate: Gate,
    device: Device,
    settings: Settings,
    output: Path,
) -> dict[str, Any]:
    """Complete the folder of the last of `results` and rename it to `output`.

    Returns the values of its export.json.
    """
    record = export_record(context, artifact, results, gate, device)
    folder = context.folder(results[-1].row.name)
    save_provenance(artifact, folder)
    if not artifact.is_reward_model:
        write_ovms(folder, output.name, device, settings.kv_cache)
    if record["gate"] and record["gate"]["plot"]:
        write_text(folder / PLOT, size_quality_plot(record["gate"]["table"], gate.limits))
    write_record(folder, record)
    name_folder(folder, output)
    return record


def _try_until_passed(
    context: ExportContext, ladder: list[Candidate], limits: Limits
) -> list[CandidateResult]:
    """The results of all candidates up to the first that satisfies `limits`.

    Raises GateRefused where none does.
    """
    results: list[CandidateResult] = []
    for candidate in ladder:
        result = try_candidate(context, candidate)
        results.append(result)
        why = limits.why_rejected(result.row.quality) if result.row.quality else None
        logger.info("%s", log_line(result.row, limits))
        if why is None:
            ensure_built(context, candidate)
            return results
        drop_stage(context.folder(candidate.name))
    tried = ", ".join(candidate.name for candidate in ladder)
    raise GateRefused(
        f"no candidate passed the quality gate (tried {tried}); {candidate.name}: {why}; nothing "
        "was written"
    )


def save_provenance(artifact: Artifact, folder: Path) -> None:
    """Write intel_ft.json for the IR in `folder`."""
    Provenance(
        kind="openvino",
        base_model=public_id(artifact.base_model),
        base_revision=artifact.base_revision,
        template=artifact.template or "auto",
        system_prompt=artifact.system_prompt,
        version=__version__,
        loss_on=artifact.loss_on,
        start_adapter=artifact.start_adapter,
    ).save(folder)
