"""Export adapters unmerged, with one IR of their base, for OpenVINO GenAI to apply at run time."""

import gc
import logging
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intel_ft.artifacts.resolve import ADAPTER_CONFIG, Artifact, read_json, resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.context import Source, prepare_context, reference_dtype
from intel_ft.export.export import require_packages, save_provenance
from intel_ft.export.export_json import export_record, write_record
from intel_ft.export.gate import Gate
from intel_ft.export.ladder import candidates
from intel_ft.export.logit_agreement import probe_sequences
from intel_ft.export.output import quiet
from intel_ft.export.ovms import Device, write_ovms
from intel_ft.export.settings import Format, Settings
from intel_ft.export.try_candidate import try_candidate
from intel_ft.export.workspace import folder_state, workspace
from intel_ft.files import name_folder, write_json
from intel_ft.models.adapter import WEIGHTS
from intel_ft.models.adapter_match import require_matching_base
from intel_ft.runtimes.language_model import Sampling, base_config

logger = logging.getLogger(__name__)

FOLDER = "adapters"
PROBE_POSITIONS = 24  # positions whose next token is compared with torch
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class RuntimeAdapter:
    """An adapter as GenAI applies it: `AdapterConfig(Adapter(file), alpha)`.

    The scaling, lora_alpha / r (lora_alpha / sqrt(r) for rsLoRA), is folded into the file's B
    matrices, so `alpha` is always 1. `top1`: share of positions where base and adapter at run time
    have the same most likely token as in torch, `top1_without` the same without the adapter;
    `text_equal`: a greedy answer is the same.
    """

    name: str
    file: str
    r: int
    lora_alpha: float
    alpha: float
    top1: float
    top1_without: float
    text_equal: bool


@dataclass(frozen=True)
class AdaptersReport:
    """What was exported; `adapters` in the order of the sources."""

    folder: str
    base_model: str
    format: Format
    megabytes: float
    seconds: float
    peak_gib: float
    adapters: list[RuntimeAdapter]


@dataclass(frozen=True)
class _TorchReference:
    """What torch computes: the most likely token after each of `prefixes`, and a greedy answer."""

    prefixes: list[list[int]]
    next_tokens: list[int]
    answer: tuple[int, ...]


def export_adapters(
    sources: list[str],
    output: Path,
    weight_format: Format,
    *,
    settings: Settings | None = None,
    calibration: str | None = None,
    device: Device = "CPU",
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> AdaptersReport:
    """Write the adapters in `sources`, and their base as an IR in `weight_format`, to `output`.

    Calibrates on the first adapter's training data. Raises UserError where the bases differ or
    GenAI cannot apply an adapter (DoRA, trained embeddings), IntelFTError where an adapter does
    not work at run time. Nothing is left in `output` then.
    """
    start = time.monotonic()
    settings = settings or Settings()
    artifacts = [resolve(source) for source in sources]
    for artifact in artifacts:
        _require_supported(artifact)
    first = artifacts[0]
    for other in artifacts[1:]:
        if other.base_model != first.base_model:
            raise UserError(
                f"{other.location} is an adapter of {other.base_model}, {first.location} of "
                f"{first.base_model}: adapters in one folder must have one base"
            )
    key = {
        "adapters": [folder_state(artifact.folder) for artifact in artifacts],
        "base": base or first.base_model,
        "calibration": [calibration, settings.samples, settings.sample_tokens],
    }
    with workspace(output, key) as work:
        with quiet():
            require_packages()
            source = Source(first, base, trust_remote_code, allow_pickle, merged=False)
            for artifact in artifacts:
                require_matching_base(artifact, base_config(source.with_base(artifact)))
            gate = Gate(measure=False)
            context = prepare_context(source, work, gate, calibration, settings)
            result = try_candidate(context, candidates(weight_format, settings)[0])
            folder = context.folder(result.row.name)
            adapters = _add_adapters(source, artifacts, folder)
        record = export_record(context, first, [result], gate, device)
        record |= {"kind": "base+adapters", "adapters": [asdict(adapter) for adapter in adapters]}
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
    )


def _require_supported(artifact: Artifact) -> None:
    if artifact.kind != "adapter":
        raise UserError(f"{artifact.location}: --adapter takes runs and adapters, not models")
    config = read_json(artifact.folder / ADAPTER_CONFIG)
    for key, what in (("use_dora", "DoRA"), ("modules_to_save", "fully trained modules")):
        if config.get(key):
            raise UserError(
                f"{artifact.location}: OpenVINO GenAI cannot apply {what} at run time: export it "
                "merged (without --adapter)"
            )


def _add_adapters(source: Source, artifacts: list[Artifact], folder: Path) -> list[RuntimeAdapter]:
    """Write each adapter into `folder` and compare GenAI's output with torch's."""
    names = _names(artifacts)
    references, configs = [], []
    for artifact, name in zip(artifacts, names, strict=True):
        adapter_folder = folder / FOLDER / name
        adapter_folder.mkdir(parents=True, exist_ok=True)
        model, config = _write_adapter(source, artifact, adapter_folder)
        references.append(_torch_reference(model))
        configs.append(config)
        del model
        gc.collect()
    runtime = _GenAIRuntime(folder, [folder / FOLDER / name / WEIGHTS for name in names])
    adapters = []
    for index, (name, reference, config) in enumerate(zip(names, references, configs, strict=True)):
        adapter = RuntimeAdapter(
            name=name,
            file=f"{FOLDER}/{name}/{WEIGHTS}",
            r=int(config["r"]),
            lora_alpha=float(config["lora_alpha"]),
            alpha=1.0,
            top1=runtime.top1(index, reference),
            top1_without=runtime.top1(None, reference),
            text_equal=runtime.same_answer(index, reference),
        )
        logger.info(
            "%s: top-1 agreement with torch %.3f, without the adapter %.3f",
            name,
            adapter.top1,
            adapter.top1_without,
        )
        # At least half of the adapter's effect must be there; quantization explains the rest.
        if adapter.top1 < (1 + adapter.top1_without) / 2 - 1 / PROBE_POSITIONS:
            raise IntelFTError(
                f"{artifacts[index].location}: at run time {adapter.top1:.0%} of the next tokens "
                f"are those of torch, {adapter.top1_without:.0%} without the adapter: it is not "
                "applied as it was trained, or the base is quantized too coarsely"
            )
        adapters.append(adapter)
    return adapters


def _names(artifacts: list[Artifact]) -> list[str]:
    """The runs' names, made unique by a number."""
    names: list[str] = []
    for artifact in artifacts:
        folder = artifact.folder.resolve()
        name = folder.parent.name if folder.name == "adapter" else folder.name
        copies = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{copies + 1}" if copies else name)
    return names


def _write_adapter(source: Source, artifact: Artifact, folder: Path) -> tuple[Any, dict[str, Any]]:
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


def _torch_reference(model: Any) -> _TorchReference:
    sequences = probe_sequences(model.tokenizer)
    positions = [(i, at) for i, tokens in enumerate(sequences) for at in range(1, len(tokens))]
    chosen = [positions[int(k)] for k in np.linspace(0, len(positions) - 1, PROBE_POSITIONS)]
    prefixes, next_tokens = [], []
    for index, at in chosen:
        tokens = sequences[index]
        logits = model.logits(tokens[: at + 1], np.array([at]))
        prefixes.append([int(token) for token in tokens[: at + 1]])
        next_tokens.append(int(logits[0].argmax()))
    answer = model.generate(prefixes[0], Sampling(max_new_tokens=ANSWER_TOKENS)).new_tokens
    return _TorchReference(prefixes, next_tokens, answer)


class _GenAIRuntime:
    """GenAI's pipeline on the base's IR, with one adapter at a time or none."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._adapters = [openvino_genai.Adapter(str(file)) for file in files]
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", adapters=openvino_genai.AdapterConfig(self._adapters)
        )

    def top1(self, index: int | None, reference: _TorchReference) -> float:
        """Share of the prefixes where adapter `index` (None: none) gives torch's next token."""
        pairs = zip(reference.prefixes, reference.next_tokens, strict=True)
        same = [self._generate(index, prefix, 1)[:1] == (token,) for prefix, token in pairs]
        return sum(same) / PROBE_POSITIONS

    def same_answer(self, index: int, reference: _TorchReference) -> bool:
        """Whether the greedy answer is torch's."""
        answer = self._generate(index, reference.prefixes[0], ANSWER_TOKENS)
        return answer == reference.answer

    def _generate(self, index: int | None, prefix: list[int], count: int) -> tuple[int, ...]:
        import openvino

        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.do_sample = count, False
        active = [] if index is None else [self._adapters[index]]
        config.adapters = self._genai.AdapterConfig(active)
        prompt = openvino.Tensor(np.array([prefix], dtype=np.int64))
        return tuple(self._pipeline.generate(prompt, config).tokens[0])
