"""Adapters for OpenVINO GenAI beside one IR of their base, each checked as it runs there; called
from cli.export.
"""

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
from intel_ft.export.adapter_match import require_belonging
from intel_ft.export.context import Source, prepare_bench, reference_dtype
from intel_ft.export.export import require_packages, save_provenance
from intel_ft.export.export_json import export_record, write_record
from intel_ft.export.gate import Gate
from intel_ft.export.ladder import candidates
from intel_ft.export.logit_agreement import probe
from intel_ft.export.output import quiet
from intel_ft.export.ovms import Device, write_ovms
from intel_ft.export.settings import Format, Settings
from intel_ft.export.try_candidate import attempt
from intel_ft.export.workspace import fingerprint, workspace
from intel_ft.files import name_folder, write_json
from intel_ft.models.adapter import WEIGHTS
from intel_ft.runtimes.language_model import Sampling, base_config

log = logging.getLogger(__name__)

FOLDER = "adapters"
PROBES, ANSWER = 24, 24  # positions whose next token is compared, and tokens of an answer


@dataclass(frozen=True)
class RuntimeAdapter:
    """An adapter as GenAI applies it: `AdapterConfig(Adapter(file), alpha)`.

    lora_alpha / r (or its root, for rsLoRA) is folded into the file's B matrices, so `alpha` is
    always 1. `top1`: share of positions where base and adapter at run time give the likeliest
    token of the two in torch, `top1_without` the same without the adapter; `text_equal`: a greedy
    answer is the same.
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
    """`adapters`: in the order they were given."""

    folder: str
    base_model: str
    format: Format
    megabytes: float
    seconds: float
    peak_gib: float
    adapters: list[RuntimeAdapter]


@dataclass(frozen=True)
class _Expected:
    """What torch says: the likeliest token after each of `prefixes`, and a greedy answer."""

    prefixes: list[list[int]]
    likeliest: list[int]
    answer: tuple[int, ...]


def export_adapters(
    sources: list[str],
    output: Path,
    format: Format,
    *,
    settings: Settings | None = None,
    calibration: str | None = None,
    device: Device = "CPU",
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> AdaptersReport:
    """Write the base of the adapters in `sources` as an IR of `format`, and them beside it.

    Calibrates on the first one's training data. Raises UserError where they have different bases,
    or one is what GenAI cannot apply (DoRA, trained embeddings), IntelFTError where one does not
    work at run time. Nothing is left under `output` then.
    """
    start = time.monotonic()
    settings = settings or Settings()
    artifacts = [resolve(source) for source in sources]
    for artifact in artifacts:
        _require_runnable(artifact)
    first = artifacts[0]
    for other in artifacts[1:]:
        if other.base_model != first.base_model:
            raise UserError(
                f"{other.location} is an adapter of {other.base_model}, {first.location} of "
                f"{first.base_model}: one folder holds one base"
            )
    key = {
        "adapters": [fingerprint(artifact.folder) for artifact in artifacts],
        "base": base or first.base_model,
        "calibration": [calibration, settings.samples, settings.sample_tokens],
    }
    with workspace(output, key) as work:
        with quiet():
            require_packages()
            source = Source(first, base, trust_remote_code, allow_pickle, merged=False)
            for artifact in artifacts:
                require_belonging(artifact, base_config(source.onto(artifact)))
            gate = Gate(measure=False)
            bench = prepare_bench(source, work, gate, calibration, settings)
            made = attempt(bench, candidates(format, settings)[0])
            folder = bench.folder(made.row.name)
            adapters = _add_adapters(source, artifacts, folder)
        record = export_record(bench, first, [made], made, gate, device)
        record |= {"kind": "base+adapters", "adapters": [asdict(one) for one in adapters]}
        save_provenance(first, folder)
        write_ovms(folder, output.name, device, settings.kv_cache)
        write_record(folder, record)
        name_folder(folder, output)
    return AdaptersReport(
        folder=str(output),
        base_model=first.base_model,
        format=format,
        megabytes=made.row.megabytes,
        seconds=time.monotonic() - start,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        adapters=adapters,
    )


def _require_runnable(artifact: Artifact) -> None:
    if artifact.kind != "adapter":
        raise UserError(f"{artifact.location}: --adapter takes runs and adapters, not a model")
    config = read_json(artifact.folder / ADAPTER_CONFIG)
    for key, what in (("use_dora", "DoRA"), ("modules_to_save", "modules trained whole")):
        if config.get(key):
            raise UserError(
                f"{artifact.location}: OpenVINO GenAI cannot apply {what} at run time: export it "
                "merged, without --adapter"
            )


def _add_adapters(source: Source, artifacts: list[Artifact], folder: Path) -> list[RuntimeAdapter]:
    """Write each adapter below `folder` and hold what GenAI makes of it against torch."""
    names = _names(artifacts)
    expected, configs = [], []
    for artifact, name in zip(artifacts, names, strict=True):
        place = folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        model, config = _write_adapter(source, artifact, place)
        expected.append(_ask_torch(model, artifact))
        configs.append(config)
        del model
        gc.collect()
    runtime = _Runtime(folder, [folder / FOLDER / name / WEIGHTS for name in names])
    found = []
    for index, (name, wanted, config) in enumerate(zip(names, expected, configs, strict=True)):
        one = RuntimeAdapter(
            name=name,
            file=f"{FOLDER}/{name}/{WEIGHTS}",
            r=int(config["r"]),
            lora_alpha=float(config["lora_alpha"]),
            alpha=1.0,
            top1=runtime.top1(index, wanted),
            top1_without=runtime.top1(None, wanted),
            text_equal=runtime.answer(index, wanted),
        )
        log.info("%s: top-1 %.3f, without it %.3f", name, one.top1, one.top1_without)
        # What the adapter changes must come out changed; the rest is the base's quantization.
        if one.top1 < (1 + one.top1_without) / 2 - 1 / PROBES:
            raise IntelFTError(
                f"{artifacts[index].location}: at run time it gives {one.top1:.0%} of the tokens "
                f"it gives in torch, {one.top1_without:.0%} without it: it is not applied as it "
                "was trained, or the base is quantized too far"
            )
        found.append(one)
    return found


def _names(artifacts: list[Artifact]) -> list[str]:
    """The runs' names, made different where two are the same."""
    names: list[str] = []
    for artifact in artifacts:
        folder = artifact.folder.resolve()
        name = folder.parent.name if folder.name == "adapter" else folder.name
        copies = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{copies + 1}" if copies else name)
    return names


def _write_adapter(source: Source, artifact: Artifact, place: Path) -> tuple[Any, dict[str, Any]]:
    """The adapter on its base in torch, and its adapter_config.json, once `place` holds both with
    the scaling folded in.
    """
    from safetensors.torch import load_file, save_file

    from intel_ft.runtimes.torch_lm import load_torch

    model = load_torch(
        source.onto(artifact),
        dtype=reference_dtype(source.folder(place))[0],
        trust_remote_code=source.trust_remote_code,
        allow_pickle=source.allow_pickle,
    )
    tensors = load_file(artifact.folder / WEIGHTS)
    if foreign := [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]:
        raise UserError(
            f"{artifact.location}: OpenVINO GenAI cannot apply {foreign[0]} at run time: export it "
            "merged, without --adapter"
        )
    save_file(_folded(tensors, model.model), place / WEIGHTS, metadata={"format": "pt"})
    config = read_json(artifact.folder / ADAPTER_CONFIG)
    folded = config | {
        "base_model_name_or_path": source.base_ids()[0],
        "lora_alpha": config["r"],
        "alpha_pattern": dict(config.get("rank_pattern") or {}),
        "use_rslora": False,
    }
    write_json(place / ADAPTER_CONFIG, folded)
    return model, config


def _folded(tensors: dict[str, Any], model: Any) -> dict[str, Any]:
    """`tensors` with each layer's scaling, as peft has it, multiplied into its B."""
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


def _ask_torch(model: Any, artifact: Artifact) -> _Expected:
    sequences = probe(model.tokenizer)
    places = [(i, at) for i, tokens in enumerate(sequences) for at in range(1, len(tokens))]
    chosen = [places[int(k)] for k in np.linspace(0, len(places) - 1, PROBES)]
    prefixes, likeliest = [], []
    for index, at in chosen:
        tokens = sequences[index]
        logits = model.logits(tokens[: at + 1], np.array([at]))
        prefixes.append([int(token) for token in tokens[: at + 1]])
        likeliest.append(int(logits[0].argmax()))
    answer = model.generate(prefixes[0], Sampling(max_new_tokens=ANSWER)).new_tokens
    return _Expected(prefixes, likeliest, answer)


class _Runtime:
    """GenAI's pipeline over the base's IR, with one of the adapters at a time or none."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._adapters = [openvino_genai.Adapter(str(file)) for file in files]
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", adapters=openvino_genai.AdapterConfig(self._adapters)
        )

    def top1(self, index: int | None, expected: _Expected) -> float:
        """Share of the prefixes after which adapter `index` (None: none) says what torch says."""
        pairs = zip(expected.prefixes, expected.likeliest, strict=True)
        return sum(self._next(index, prefix, 1)[:1] == (token,) for prefix, token in pairs) / PROBES

    def answer(self, index: int, expected: _Expected) -> bool:
        """Whether the greedy answer is torch's."""
        return self._next(index, expected.prefixes[0], ANSWER) == expected.answer

    def _next(self, index: int | None, prefix: list[int], count: int) -> tuple[int, ...]:
        import openvino

        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.do_sample = count, False
        one = [] if index is None else [self._adapters[index]]
        config.adapters = self._genai.AdapterConfig(one)
        prompt = openvino.Tensor(np.array([prefix], dtype=np.int64))
        return tuple(self._pipeline.generate(prompt, config).tokens[0])
