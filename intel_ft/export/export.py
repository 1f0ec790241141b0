"""A model folder that OpenVINO runs, the smallest that is still good: read this first to see what
`export` does; called from cli.export and demo.
"""

import logging
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import intel_ft
from intel_ft.artifacts.ir import IRWeights
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.errors import GateRefused, UserError
from intel_ft.export.context import Source, prepare_bench
from intel_ft.export.export_json import export_record, write_record
from intel_ft.export.gate import PLOT, Gate, Limits, line, plot
from intel_ft.export.ladder import Candidate, candidates
from intel_ft.export.output import quiet
from intel_ft.export.ovms import Device, write_ovms
from intel_ft.export.recipe import public_id
from intel_ft.export.settings import Format, Settings
from intel_ft.export.try_candidate import Attempt, Bench, attempt, ensure_made
from intel_ft.export.workspace import drop, fingerprint, workspace
from intel_ft.files import name_folder, write_text
from intel_ft.optional_packages import require_openvino

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """`tokenizer_agrees`: the tokenizer IR gives the same ids as the Hugging Face tokenizer.
    `gate`: as in export.json, None where nothing was measured. `peak_gib`: most memory that this
    process held, mapped files included.
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
    format: Format | Literal["auto"],
    *,
    settings: Settings | None = None,
    calibration: str | None = None,
    gate: Gate | None = None,
    device: Device = "CPU",
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> ExportReport:
    """Write `source` (run, adapter, merged folder, base folder or id) as an IR folder.

    An adapter is merged first (`base`: see `merge`). The candidates of `format`, small to large,
    are made, read back, measured against the model in torch on held-out data, and the first that
    keeps to the gate's limits gets the name `output`. It opens in OVModelForCausalLM, in OpenVINO
    GenAI's LLMPipeline and in OVMS. What was finished when it is interrupted is not done again.

    Raises UserError for a source or settings that cannot be exported, EnvironmentProblem without
    the `openvino` extra, GateRefused where no candidate passes, IntelFTError where a written IR is
    not what it should be. Nothing is left under `output` then.
    """
    start = time.monotonic()
    gate, settings = gate or Gate(), settings or Settings()
    if format == "auto" and not gate.limits.set:
        gate = replace(gate, limits=Limits(max_ppl_increase=0.01))
        log.info("auto: the limit is 1 % more perplexity, as none was given")
    artifact = resolve(source)
    if artifact.kind == "openvino":
        raise UserError(f"{source}: this is an OpenVINO model already")
    key = _key(artifact, base, gate, calibration, settings)
    with workspace(output, key) as work:
        with quiet():
            require_packages()
            model = Source(artifact, base, trust_remote_code, allow_pickle)
            bench = prepare_bench(model, work, gate, calibration, settings)
            attempts = _first_that_passes(bench, candidates(format, settings), gate.limits)
        record = finish(bench, artifact, attempts, gate, device, settings, output)
    chosen = attempts[-1]
    log.info("exported %s: %s, %.1f MB", output, chosen.row.name, chosen.row.megabytes)
    return ExportReport(
        folder=str(output),
        base_model=artifact.base_model,
        format=chosen.row.format,
        name=chosen.row.name,
        weights=chosen.weights,
        megabytes=chosen.row.megabytes,
        tokenizer_agrees=chosen.tokenizer_agrees,
        seconds=time.monotonic() - start,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        gate=record["gate"],
    )


def require_packages() -> None:
    """Raise EnvironmentProblem where a package of the `openvino` extra does not load."""
    require_openvino("openvino", "openvino_tokenizers", "openvino_genai", "nncf", "optimum.intel")
    import nncf

    # It sets its logger to INFO when it is imported, and draws tables there.
    nncf.set_log_level(logging.ERROR)


def _key(
    artifact: Artifact, base: str | None, gate: Gate, calibration: str | None, settings: Settings
) -> dict[str, Any]:
    """What an interrupted export must share with this one to be gone on from."""
    return {
        "version": intel_ft.__version__,
        "source": fingerprint(artifact.folder) if artifact.folder.is_dir() else artifact.location,
        "base": base,
        "data": [gate.data, gate.split, gate.generate, gate.max_new_tokens, gate.measure],
        "calibration": [calibration, settings.samples, settings.sample_tokens],
    }


def finish(
    bench: Bench,
    artifact: Artifact,
    attempts: list[Attempt],
    gate: Gate,
    device: Device,
    settings: Settings,
    output: Path,
) -> dict[str, Any]:
    """Give the folder of the last of `attempts` all that belongs beside an IR, and the name
    `output`; its export.json.
    """
    chosen = attempts[-1]
    record = export_record(bench, artifact, attempts, chosen, gate, device)
    folder = bench.folder(chosen.row.name)
    save_provenance(artifact, folder)
    write_ovms(folder, output.name, device, settings.kv_cache)
    if record["gate"] and record["gate"]["plot"]:
        write_text(folder / PLOT, plot(record["gate"]["table"], gate.limits))
    write_record(folder, record)
    name_folder(folder, output)
    return record


def _first_that_passes(bench: Bench, ladder: list[Candidate], limits: Limits) -> list[Attempt]:
    """Every attempt up to the first that keeps to `limits`.

    Raises GateRefused where none does.
    """
    attempts: list[Attempt] = []
    for candidate in ladder:
        attempts.append(attempt(bench, candidate))
        row = attempts[-1].row
        why = limits.refusal(row.quality) if row.quality else None
        log.info("%s", line(row, why))
        if why is None:
            ensure_made(bench, candidate)
            return attempts
        drop(bench.folder(candidate.name))
    tried = ", ".join(candidate.name for candidate in ladder)
    raise GateRefused(f"the gate refuses {tried}: {why}; nothing was written")


def save_provenance(artifact: Artifact, folder: Path) -> None:
    """Write intel_ft.json of the IR in `folder`."""
    Provenance(
        kind="openvino",
        base_model=public_id(artifact.base_model),
        base_revision=artifact.base_revision,
        template=artifact.template or "auto",
        system_prompt=artifact.system_prompt,
        version=intel_ft.__version__,
    ).save(folder)
