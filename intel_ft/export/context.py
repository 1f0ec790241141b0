"""What all candidates of an export share: data, the reference's log-probabilities, the fp16 IR."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intel_ft.artifacts.model_folder import BASE_KEY
from intel_ft.artifacts.resolve import Artifact, is_reward_model, read_json, resolve
from intel_ft.errors import UserError
from intel_ft.export.classifier import check_scores
from intel_ft.export.convert import convert, safe_folder
from intel_ft.export.gate import Gate
from intel_ft.export.lifted import check_lifted
from intel_ft.export.measure import GateTask
from intel_ft.export.measure_pairs import PairTask
from intel_ft.export.merge import merge
from intel_ft.export.quantize import Calibration
from intel_ft.export.recipe import public_id
from intel_ft.export.run_data import (
    ValidationSet,
    find_calibration,
    find_training,
    find_validation_set,
)
from intel_ft.export.tasks import load_task
from intel_ft.export.workspace import drop_stage, stage
from intel_ft.files import write_json
from intel_ft.plurals import count_of
from intel_ft.quantization import Settings
from intel_ft.runtimes.language_model import base_config, tokenizer_config
from intel_ft.templates.examples import ExampleSet
from intel_ft.versions import installed

logger = logging.getLogger(__name__)

MERGED = "merged"
DTYPE = "dtype.json"
_REFERENCE_MODEL = "reference-model"


@dataclass(frozen=True)
class ModelToExport:
    """The model to export, and how far to trust its files."""

    artifact: Artifact
    base: str | None
    trust_remote_code: bool
    allow_pickle: bool
    merged: bool = True

    def with_base(self, artifact: Artifact) -> Artifact:
        """`artifact` with its base at the location that the user gave, if any."""
        if self.base is None:
            return artifact
        return replace(artifact, base_model=self.base, base_revision=None)

    def model_folder(self, work: Path) -> Path:
        """A checked model folder.

        Of an adapter it is the base with the adapter merged into it, in `work`; with `merged`
        False, the base alone.
        """
        model = self.with_base(self.artifact)
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

    def refuse_unexportable(self) -> None:
        """Raise UserError, before anything is merged, for a type that cannot be exported."""
        from intel_ft.models.exportable import table_version, why_not_exportable
        from intel_ft.models.load import description_of, loaded_model_type

        if installed("optimum-intel") != table_version():
            return  # which knows for itself
        config = base_config(
            self.with_base(self.artifact),
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )
        model_type = loaded_model_type(description_of(config))
        scores = self.artifact.is_reward_model
        if reason := why_not_exportable(model_type, scores=scores):
            verb = "eval" if scores else "generate"
            raise UserError(
                f"{self.artifact.location}: {reason}: `intel-ft merge` writes safetensors, which "
                f"other servers load, and `intel-ft {verb}` runs it with torch"
            )

    def refuse_unrecoverable(self) -> None:
        """Raise UserError, before anything is merged, for a model that --recover cannot tune."""
        from intel_ft.layers.mixture import expert_matrices
        from intel_ft.models.load import description_of
        from intel_ft.training.model_sizes import without_weights

        config = base_config(
            self.with_base(self.artifact),
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )
        if any(expert_matrices(without_weights(config, description_of(config)))):
            raise UserError(
                f"{self.artifact.location}: --recover tunes linear layers, and the experts of this "
                "mixture of experts are none: export it without --recover"
            )

    def base_ids(self) -> list[str]:
        """Ids to look up a recipe by: the base model's, and the one in its config.json."""
        base_model = self.artifact.base_model
        config = read_json(Path(base_model) / "config.json") if Path(base_model).is_dir() else {}
        return [public_id(base_model), str(config.get(BASE_KEY) or "")]


@dataclass(frozen=True)
class Tuning:
    """What `--recover` tunes with: training examples, and the unquantized model, once loaded."""

    examples: ExampleSet
    load: Callable[[], Any]


@dataclass(frozen=True)
class ExportContext:
    """What every candidate is made from and measured with.

    `base_ids`: ids to look up a recipe by, the public one first; `fp16`: the IR's folder;
    `reference`: the folder that `task.write_reference` wrote; `tuning`: for `--recover`.
    """

    work: Path
    base_ids: list[str]
    fp16: Path
    calibration: Calibration | None
    task: GateTask | PairTask | None
    reference: Path
    trust_remote_code: bool
    tuning: Tuning | None = None

    def folder(self, name: str) -> Path:
        """The folder of the candidate `name`."""
        return self.work / "candidates" / name


def prepare_context(
    source: ModelToExport,
    work: Path,
    gate: Gate,
    calibration: str | None,
    settings: Settings,
    *,
    recover: bool = False,
) -> ExportContext:
    """Read the data, compute the reference's log-probabilities and trace the fp16 IR."""
    from intel_ft.models.load import load_tokenizer

    artifact, trust = source.artifact, source.trust_remote_code
    source.refuse_unexportable()
    if recover:
        source.refuse_unrecoverable()
    tokenizer = load_tokenizer(tokenizer_config(artifact, trust_remote_code=trust))
    tuning = _tuning(source, work, tokenizer, calibration) if recover else None
    task: GateTask | PairTask | None
    if artifact.is_reward_model:
        task = pair_task(artifact, tokenizer, gate)
    else:
        task = gate_task(artifact, tokenizer, gate)
    calibration_data = find_calibration(artifact, tokenizer, calibration, settings)
    if gate.measure:
        logger.info("%s", _describe_task(task))
    logger.info("%s", _describe_calibration(calibration_data))
    reference = work / "reference"
    if task:
        stage(reference, lambda partial: _write_reference(source, work, task, gate, partial))
    fp16 = stage(work / "fp16", lambda partial: _trace(source, work, partial))
    if tuning is None:
        drop_stage(work / MERGED)
    gc.collect()
    return ExportContext(
        work=work,
        base_ids=source.base_ids(),
        fp16=fp16,
        calibration=calibration_data,
        task=task,
        reference=reference,
        trust_remote_code=trust,
        tuning=tuning,
    )


def _tuning(source: ModelToExport, work: Path, tokenizer: Any, calibration: str | None) -> Tuning:
    examples = find_training(source.artifact, tokenizer, calibration)
    if examples is None:
        raise UserError(
            f"{source.artifact.location}: --recover needs training examples, and this is not a run"
            " with training data: name some with --calibration"
        )

    def load() -> Any:
        folder = source.model_folder(work)
        return _load(folder, reference_dtype(folder)[0], source).model

    return Tuning(examples, load)


def gate_task(artifact: Artifact, tokenizer: Any, gate: Gate) -> GateTask | None:
    """What `gate` measures of this model, None where it measures nothing. Raises UserError."""
    if gate.limits.max_task_drop is not None and gate.task is None:
        raise UserError("--max-task-drop needs a task: name it with --task")
    validation = _validation(artifact, tokenizer, gate)
    if validation is None:
        return None
    return GateTask(
        validation,
        artifact.system_prompt,
        gate.answers,
        gate.max_new_tokens,
        None if gate.task is None else load_task(gate.task, gate.generate or None),
    )


def pair_task(artifact: Artifact, tokenizer: Any, gate: Gate) -> PairTask | None:
    """What `gate` measures of this reward model, None where it measures nothing.

    Raises UserError.
    """
    validation = _validation(artifact, tokenizer, gate)
    return None if validation is None else PairTask(validation)


def refuse_for_scores(artifact: Artifact, gate: Gate, settings: Settings, *, recover: bool) -> None:
    """Raise UserError for options that a reward model does not support: it generates no text."""
    refused = {
        "--max-ppl-increase": gate.limits.max_ppl_increase is not None,
        "--generate": gate.generate > 0,
        "--task": gate.task is not None,
        "--recover": recover,
        "--set kv_cache": settings.kv_cache != "auto",
    }
    for option, given in refused.items():
        if given:
            raise UserError(
                f"{artifact.location}: {option} is for language models, and this is a reward "
                "model, which generates no text: remove it. Limits for reward models are "
                "--min-agreement (order of pairs) and --max-task-drop (pair accuracy)"
            )


def _validation(artifact: Artifact, tokenizer: Any, gate: Gate) -> ValidationSet | None:
    """The validation set, None where `gate` measures nothing or there is none.

    Raises UserError where a limit or a task needs one.
    """
    needed = gate.limits.is_set or gate.task is not None
    if not gate.measure:
        if needed:
            raise UserError("the quality gate and --task need measurements: remove --no-measure")
        return None
    validation = find_validation_set(artifact, tokenizer, gate.data, gate.split)
    if validation is None and needed:
        raise UserError(
            f"{artifact.location}: no validation set to measure on (the run has neither data.eval "
            "nor data.eval_fraction): name one with --data"
        )
    return validation


def _describe_task(task: GateTask | PairTask | None) -> str:
    if task is None:
        return "quality is not measured: there is no validation set"
    if isinstance(task, PairTask):
        return f"validation set: {task.validation.source}, {count_of(len(task.pairs()), 'pair')}"
    validation = task.validation
    count = len(validation.prepared.examples)
    return f"validation set: {validation.source}, {count_of(count, 'example')}"


def _describe_calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "no calibration data: methods that need it are not used"
    return (
        f"calibration data: {calibration.source}, {count_of(len(calibration.rows), 'example')}, "
        f"{calibration.tokens:,} tokens"
    )


def _trace(source: ModelToExport, work: Path, partial: Path) -> None:
    """Write the fp16 IR.

    Its output is compared with torch's for a reward model, and where Optimum-Intel's stated limit
    was lifted.
    """
    folder, trust = source.model_folder(work), source.trust_remote_code
    convert(folder, partial, public_id(source.artifact.base_model), trust)
    check = check_scores if is_reward_model(folder) else check_lifted
    check(folder, partial, reference_dtype(folder)[0], trust_remote_code=trust)


def _write_reference(
    source: ModelToExport, work: Path, task: GateTask | PairTask, gate: Gate, partial: Path
) -> None:
    """Measure the model in torch, in float32 where that fits into memory."""
    from intel_ft.models.load import parameter_count

    folder = source.model_folder(work)
    if gate.reference is not None:
        folder = _other(gate.reference, source).model_folder(work / _REFERENCE_MODEL)
        if is_reward_model(folder) != isinstance(task, PairTask):
            raise UserError(
                f"--reference {gate.reference} cannot be compared: one of the two is a reward model"
                " and the other a language model: give a model of the same kind"
            )
    dtype, reason = reference_dtype(folder)
    logger.info("reference: the model in torch, %s: %s", dtype, reason)
    task.write_reference(_load(folder, dtype, source), partial)
    drop_stage(work / _REFERENCE_MODEL)
    write_json(
        partial / DTYPE,
        {
            "dtype": dtype,
            "dtype_reason": reason,
            "megabytes": 2 * parameter_count(folder) / 1e6,
        },
    )


def reference_model(name: str, work: Path, source: ModelToExport) -> Any:
    """The model `name`, merged if it is a run, in torch: what another model is compared with."""
    folder = _other(name, source).model_folder(work / _REFERENCE_MODEL)
    return _load(folder, reference_dtype(folder)[0], source)


def _other(name: str, source: ModelToExport) -> ModelToExport:
    return ModelToExport(resolve(name), None, source.trust_remote_code, source.allow_pickle)


def _load(folder: Path, dtype: str, source: ModelToExport) -> Any:
    from intel_ft.runtimes.torch_lm import load_torch
    from intel_ft.runtimes.torch_reward import load_reward

    if is_reward_model(folder):
        return load_reward(
            resolve(str(folder)), dtype=dtype, trust_remote_code=source.trust_remote_code
        )
    return load_torch(
        resolve(str(folder)),
        dtype=dtype,
        trust_remote_code=source.trust_remote_code,
        allow_pickle=source.allow_pickle,
    )


def reference_dtype(folder: Path) -> tuple[str, str]:
    """The dtype of the reference in torch, and the reason.

    float32 where the weights fit into memory, with a quarter more for everything else.
    """
    from intel_ft.host.cpu import GIB, available_bytes
    from intel_ft.models.load import parameter_count

    needed, available = 5 * parameter_count(folder), available_bytes()
    reason = f"float32 needs {needed / GIB:.2g} GiB, {available / GIB:.1f} GiB are available"
    return ("float32" if needed < available else "bfloat16"), reason
