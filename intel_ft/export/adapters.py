"""Export adapters unmerged, with one IR of their base, for OpenVINO GenAI to apply at run time."""

import gc
import logging
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.fingerprints import folder_state
from intel_ft.artifacts.resolve import ADAPTER_CONFIG, Artifact, read_json, resolve
from intel_ft.errors import GateRefused, IntelFTError, UserError
from intel_ft.export.adapter_runtime import (
    PROBE_POSITIONS,
    AdaptedIR,
    GenAIRuntime,
    TorchReference,
    torch_reference,
)
from intel_ft.export.context import (
    ModelToExport,
    gate_task,
    prepare_context,
    reference_dtype,
    reference_model,
)
from intel_ft.export.export import require_packages, save_provenance
from intel_ft.export.export_json import export_record, write_record
from intel_ft.export.gate import Gate
from intel_ft.export.ladder import candidates
from intel_ft.export.made_from import made_from
from intel_ft.export.measure import GateTask, Quality
from intel_ft.export.output import quiet
from intel_ft.export.ovms import Device, write_ovms
from intel_ft.export.trained_base import (
    Equality,
    common_int4,
    prove_equality,
    take_record,
    take_trained_base,
)
from intel_ft.export.try_candidate import try_candidate
from intel_ft.export.workspace import drop_stage, workspace
from intel_ft.files import name_folder, whole_folder, write_json
from intel_ft.models.adapter import WEIGHTS
from intel_ft.models.adapter_match import require_matching_base
from intel_ft.quantization import Format, Settings
from intel_ft.runtimes.language_model import base_config

logger = logging.getLogger(__name__)

FOLDER = "adapters"


@dataclass(frozen=True)
class RuntimeAdapter:
    """An adapter as GenAI applies it: `AdapterConfig(Adapter(file), alpha)`.

    The scaling, lora_alpha / r (lora_alpha / sqrt(r) for rsLoRA), is folded into the file's B
    matrices, so `alpha` is always 1. `top1`: share of positions where base and adapter at run time
    have the same most likely token as in torch, `top1_without` the same without the adapter;
    `text_equal`: a greedy answer is the same; `quality`: against the reference on the run's
    validation set, None where it was not measured.
    """

    name: str
    file: str
    r: int
    lora_alpha: float
    alpha: float
    top1: float
    top1_without: float
    text_equal: bool
    quality: Quality | None


@dataclass(frozen=True)
class AdaptersReport:
    """What was exported; `adapters` in the order of the sources.

    `trained_weights`: what proves that adapters trained on int4 weights are served on them.
    """

    folder: str
    base_model: str
    format: Format
    megabytes: float
    seconds: float
    peak_gib: float
    adapters: list[RuntimeAdapter]
    trained_weights: Equality | None


@dataclass(frozen=True)
class _Written:
    """An adapter in its folder: its config, what torch computes, and what its gate measures."""

    name: str
    config: dict[str, Any]
    reference: TorchReference
    tokenizer: Any
    task: GateTask | None

    @property
    def file(self) -> str:
        """Its weights, relative to the exported folder."""
        return f"{FOLDER}/{self.name}/{WEIGHTS}"


def export_adapters(
    sources: list[str],
    output: Path,
    weight_format: Format,
    *,
    settings: Settings | None = None,
    calibration: str | None = None,
    gate: Gate | None = None,
    device: Device = "CPU",
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> AdaptersReport:
    """Write the adapters in `sources`, and their base as an IR in `weight_format`, to `output`.

    Calibrates on the first adapter's training data, without AWQ, which would scale the inputs and
    outputs that an adapter was trained on. Adapters that were trained on int4 weights get those.
    `gate` measures each adapter on its validation set, against the model in torch that was trained
    or `gate.reference`.

    Raises GateRefused where one misses the limits, UserError where the bases differ or GenAI cannot
    apply an adapter (DoRA, trained embeddings), IntelFTError where an adapter does not work at run
    time. Nothing is left in `output` then.
    """
    start = time.monotonic()
    gate, chosen = gate or Gate(), settings or Settings()
    settings = _without_awq(chosen, weight_format)
    artifacts = [resolve(source) for source in sources]
    first = artifacts[0]
    for artifact in artifacts:
        _require_supported(artifact)
        _require_same_base(artifact, first)
    trained = common_int4(artifacts, weight_format, chosen, calibration)
    key = {
        **made_from(first, base, [(calibration, "train")]),
        "adapters": [folder_state(artifact.folder) for artifact in artifacts],
        "calibration": [calibration, settings.samples, settings.sample_tokens],
    }
    with workspace(output, key) as work:
        with quiet():
            require_packages()
            source = ModelToExport(first, base, trust_remote_code, allow_pickle, merged=False)
            for artifact in artifacts:
                require_matching_base(artifact, base_config(source.with_base(artifact)))
            if trained is None:
                context = prepare_context(source, work, Gate(measure=False), calibration, settings)
                result = try_candidate(context, candidates(weight_format, settings)[0])
            else:
                context, result = take_trained_base(source, work, trained)
            folder = context.folder(result.row.name)
            adapters = _add_adapters(source, artifacts, folder, work, gate)
        record = export_record(context, first, [result], gate, device)
        record |= {"kind": "base+adapters", "adapters": [asdict(adapter) for adapter in adapters]}
        equality = None if trained is None else prove_equality(folder, trained)
        if equality is not None:
            record |= {"trained_weights": asdict(equality), "calibration": take_record(folder)}
        save_provenance(first, folder)
        write_ovms(folder, output.name, device, settings.kv_cache)
        write_record(folder, record)
        name_folder(folder, output)
    return AdaptersReport(
        folder=str(output),
        base_model=first.base_model,
        format=weight_format,
        megabytes=result.row.megabytes,
        seconds=time.monotonic() - start,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        adapters=adapters,
        trained_weights=equality,
    )


def _without_awq(settings: Settings, weight_format: Format) -> Settings:
    """`settings` without AWQ, which the default or the recipe of int4 would have."""
    if settings.awq:
        raise UserError(
            "--set awq=true cannot be used with --adapter: AWQ moves scales between layers, but"
            " the adapter is trained without them"
        )
    if weight_format != "int4" or settings.awq is False:
        return settings
    return Settings(**(settings.model_dump(exclude_unset=True) | {"awq": False}))


_NOT_AT_RUN_TIME = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "target_parameters": "LoRA on a mixture's experts",
}
"""Keys of adapter_config.json whose adapters GenAI cannot apply."""


def _require_supported(artifact: Artifact) -> None:
    if artifact.kind != "adapter":
        raise UserError(f"{artifact.location}: --adapter takes runs and adapters, not models")
    if artifact.is_reward_model:
        raise UserError(
            f"{artifact.location}: --adapter does not support reward models: export it merged "
            "(without --adapter)"
        )
    config = read_json(artifact.folder / ADAPTER_CONFIG)
    for key, what in _NOT_AT_RUN_TIME.items():
        if config.get(key):
            raise UserError(
                f"{artifact.location}: OpenVINO GenAI cannot apply {what} at run time: export it "
                "merged (without --adapter)"
            )


def _require_same_base(artifact: Artifact, first: Artifact) -> None:
    if artifact.base_model != first.base_model:
        raise UserError(
            f"{artifact.location} is an adapter of {artifact.base_model}, {first.location} of"
            f" {first.base_model}: all adapters in one folder must have the same base"
        )


def _add_adapters(
    source: ModelToExport, artifacts: list[Artifact], folder: Path, work: Path, gate: Gate
) -> list[RuntimeAdapter]:
    """Write each adapter into `folder` and compare GenAI's output with torch's."""
    pairs = zip(artifacts, _names(artifacts), strict=True)
    written = [_write(source, artifact, name, folder, work, gate) for artifact, name in pairs]
    # Before GenAI's pipeline is there: each of them has a copy of the base's weights.
    qualities = [_measure(one, folder, work) for one in written]
    runtime = GenAIRuntime(folder, [folder / one.file for one in written])
    adapters = [
        _compare(runtime, index, one, quality)
        for index, (one, quality) in enumerate(zip(written, qualities, strict=True))
    ]
    for adapter, artifact in zip(adapters, artifacts, strict=True):
        _require_applied(adapter, artifact.location)
        _require_passed(adapter, artifact.location, gate)
    return adapters


def _write(
    source: ModelToExport, artifact: Artifact, name: str, folder: Path, work: Path, gate: Gate
) -> _Written:
    """Write one adapter, and compute in torch what it is compared with."""
    adapter_folder = folder / FOLDER / name
    adapter_folder.mkdir(parents=True, exist_ok=True)
    model, config = _write_adapter(source, artifact, adapter_folder)
    task = gate_task(artifact, model.tokenizer, gate)
    written = _Written(name, config, torch_reference(model), model.tokenizer, task)
    if task is not None:
        if gate.reference is not None:
            model = reference_model(gate.reference, work, source)
        with whole_folder(_reference(work, name)) as partial:
            task.write_reference(model, partial)
    del model
    gc.collect()
    return written


def _reference(work: Path, name: str) -> Path:
    return work / "references" / name


def _measure(written: _Written, folder: Path, work: Path) -> Quality | None:
    """The adapter's quality at run time, None where nothing is measured."""
    if written.task is None:
        return None
    served = AdaptedIR(folder, written.tokenizer, folder / written.file)
    quality = written.task.measure(served, _reference(work, written.name))
    drop_stage(_reference(work, written.name))
    return quality


def _compare(
    runtime: GenAIRuntime, index: int, written: _Written, quality: Quality | None
) -> RuntimeAdapter:
    """Compare the adapter `index` of the pipeline with torch."""
    return RuntimeAdapter(
        name=written.name,
        file=written.file,
        r=int(written.config["r"]),
        lora_alpha=float(written.config["lora_alpha"]),
        alpha=1.0,
        top1=runtime.top1(index, written.reference),
        top1_without=runtime.top1(None, written.reference),
        text_equal=runtime.same_answer(index, written.reference),
        quality=quality,
    )


def _require_applied(adapter: RuntimeAdapter, location: str) -> None:
    """Raise IntelFTError unless half of the adapter's effect is there.

    Quantization explains the rest.
    """
    logger.info(
        "%s: top-1 agreement with torch %.3f, without the adapter %.3f",
        adapter.name,
        adapter.top1,
        adapter.top1_without,
    )
    if adapter.top1 < (1 + adapter.top1_without) / 2 - 1 / PROBE_POSITIONS:
        raise IntelFTError(
            f"{location}: at run time {adapter.top1:.0%} of the next tokens agree with torch,"
            f" {adapter.top1_without:.0%} without the adapter: the adapter is not applied as it"
            " was trained, or the base is quantized too coarsely"
        )


def _require_passed(adapter: RuntimeAdapter, location: str, gate: Gate) -> None:
    if adapter.quality is None:
        return
    why, verdict = gate.limits.why_rejected(adapter.quality), gate.limits.verdict(adapter.quality)
    logger.info("%s: %s: %s", adapter.name, adapter.quality.summary(), verdict)
    if why is not None:
        raise GateRefused(f"{location}: {why}; nothing was written")


def _names(artifacts: list[Artifact]) -> list[str]:
    """The runs' names, made unique by a number."""
    names: list[str] = []
    for artifact in artifacts:
        folder = artifact.folder.resolve()
        name = folder.parent.name if folder.name == "adapter" else folder.name
        copies = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{copies + 1}" if copies else name)
    return names


def _write_adapter(
    source: ModelToExport, artifact: Artifact, folder: Path
) -> tuple[Any, dict[str, Any]]:
    """Write the adapter to `folder` with its scaling folded in.

    Returns the adapter on its base in torch, and its original adapter_config.json.
    """
    from safetensors.torch import load_file, save_file

    from intel_ft.runtimes.torch_lm import load_torch

    model = load_torch(
        source.with_base(artifact),
        dtype=reference_dtype(source.model_folder(folder))[0],
        trust_remote_code=source.trust_remote_code,
        allow_pickle=source.allow_pickle,
    )
    tensors = load_file(artifact.folder / WEIGHTS)
    if foreign := [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]:
        raise UserError(
            f"{artifact.location}: OpenVINO GenAI cannot apply {foreign[0]} at run time: export it "
            "merged (without --adapter)"
        )
    save_file(_fold_scaling(tensors, model.model), folder / WEIGHTS, metadata={"format": "pt"})
    config = read_json(artifact.folder / ADAPTER_CONFIG)
    folded = config | {
        "base_model_name_or_path": source.base_ids()[0],
        "lora_alpha": config["r"],
        "alpha_pattern": dict(config.get("rank_pattern") or {}),
        "use_rslora": False,
    }
    write_json(folder / ADAPTER_CONFIG, folded)
    return model, config


def _fold_scaling(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """`tensors` with each layer's B matrix multiplied by the layer's scaling in peft."""
    from peft.tuners.lora import LoraLayer

    scaling = {
        name: module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    ending = ".lora_B.weight"
    return {
        name: tensor * scaling[name.removesuffix(ending)] if name.endswith(ending) else tensor
        for name, tensor in tensors.items()
    }
