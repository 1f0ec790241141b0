"""What all candidates of an export share: data, the reference's distributions, the fp16 IR; called
from export.openvino.
"""

import gc
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intel_ft.artifacts.model_folder import BASE_KEY
from intel_ft.artifacts.resolve import Artifact, read_json, resolve
from intel_ft.errors import UserError
from intel_ft.export.convert import convert, safe_folder
from intel_ft.export.datasets import find_calibration, find_heldout
from intel_ft.export.gate import Gate
from intel_ft.export.measure import Task, write_reference
from intel_ft.export.merge import merge
from intel_ft.export.quantize import Calibration
from intel_ft.export.recipe import public_id
from intel_ft.export.settings import Settings
from intel_ft.export.try_candidate import Bench
from intel_ft.export.workspace import drop, stage
from intel_ft.files import write_json
from intel_ft.runtimes.language_model import tokenizer_config

log = logging.getLogger(__name__)

MERGED = "merged"
DTYPE = "dtype.json"


@dataclass(frozen=True)
class Source:
    """The model that is exported, and how far to trust its files."""

    artifact: Artifact
    base: str | None
    trust_remote_code: bool
    allow_pickle: bool
    merged: bool = True

    def onto(self, artifact: Artifact) -> Artifact:
        """`artifact` with its base where that is now."""
        if self.base is None:
            return artifact
        return replace(artifact, base_model=self.base, base_revision=None)

    def folder(self, work: Path) -> Path:
        """A checked model folder: its own, or an adapter's base, with the adapter merged in `work`
        if that is wanted.
        """
        model = self.onto(self.artifact)
        if model.kind == "adapter" and self.merged:
            if not (work / MERGED).is_dir():
                merge(
                    self.artifact.location,
                    work / MERGED,
                    base=self.base,
                    trust_remote_code=self.trust_remote_code,
                    allow_pickle=self.allow_pickle,
                )
            model = resolve(str(work / MERGED))
        return safe_folder(model, self.trust_remote_code, self.allow_pickle)

    def base_ids(self) -> list[str]:
        """Names a recipe is looked up by: the walk's own base id, and what a base folder's
        config.json says that it is.
        """
        named = self.artifact.base_model
        config = read_json(Path(named) / "config.json") if Path(named).is_dir() else {}
        return [public_id(named), str(config.get(BASE_KEY) or "")]


def prepare_bench(
    source: Source, work: Path, gate: Gate, calibration: str | None, settings: Settings
) -> Bench:
    """Data, the reference's distributions and the fp16 IR: all that candidates have in common."""
    from intel_ft.models.load import load_tokenizer

    artifact, trust = source.artifact, source.trust_remote_code
    tokenizer = load_tokenizer(tokenizer_config(artifact, trust_remote_code=trust))
    task = _task(artifact, tokenizer, gate)
    calibrate = find_calibration(artifact, tokenizer, calibration, settings)
    if gate.measure:
        log.info("%s", _said_task(task))
    log.info("%s", _said_calibration(calibrate))
    reference = work / "reference"
    if task:
        stage(reference, lambda partial: _refer(source, work, task, partial))
    fp16 = stage(
        work / "fp16",
        lambda partial: convert(
            source.folder(work), partial, public_id(artifact.base_model), trust
        ),
    )
    drop(work / MERGED)
    gc.collect()
    return Bench(work, source.base_ids(), fp16, calibrate, task, reference, trust)


def _task(artifact: Artifact, tokenizer: Any, gate: Gate) -> Task | None:
    if not gate.measure:
        if gate.limits.set:
            raise UserError("the gate's limits need measuring: leave out --no-measure")
        return None
    held_out = find_heldout(artifact, tokenizer, gate.data, gate.split)
    if held_out is not None:
        return Task(held_out, artifact.system_prompt, gate.generate, gate.max_new_tokens)
    if gate.limits.set:
        raise UserError(
            f"{artifact.location}: there is no held-out data to measure on (the run has no "
            "data.eval or data.eval_fraction): give it with --data"
        )
    return None


def _said_task(task: Task | None) -> str:
    if task is None:
        return "nothing is measured: there is no held-out data"
    return f"measuring on {task.held_out.source}: {len(task.held_out.prepared.examples)} examples"


def _said_calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "no calibration data: what needs it is left out"
    return (
        f"calibrating on {calibration.source}: {len(calibration.rows)} examples, "
        f"{calibration.tokens} tokens"
    )


def _refer(source: Source, work: Path, task: Task, partial: Path) -> None:
    """Measure the model itself, in torch: in float32 where that fits."""
    from intel_ft.models.load import parameter_count
    from intel_ft.runtimes.torch_lm import load_torch

    folder = source.folder(work)
    dtype, reason = reference_dtype(folder)
    log.info("reference: torch in %s: %s", dtype, reason)
    model = load_torch(
        resolve(str(folder)),
        dtype=dtype,
        trust_remote_code=source.trust_remote_code,
        allow_pickle=source.allow_pickle,
    )
    write_reference(model, task, partial)
    write_json(
        partial / DTYPE,
        {
            "dtype": dtype,
            "dtype_reason": reason,
            "megabytes": 2 * parameter_count(folder) / 1e6,
        },
    )


def reference_dtype(folder: Path) -> tuple[str, str]:
    """In what torch computes what an IR is held against, and why: float32 where the weights fit,
    with a quarter more for everything else.
    """
    from intel_ft.host.cpu import GIB, available_bytes
    from intel_ft.models.load import parameter_count

    needed, available = 5 * parameter_count(folder), available_bytes()
    reason = f"{needed / GIB:.2g} GiB in float32, {available / GIB:.1f} GiB available"
    return ("float32" if needed < available else "bfloat16"), reason
