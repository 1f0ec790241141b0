"""A model folder that OpenVINO runs: IR, tokenizer IR and records, verified; called from cli.export
and cli.demo.
"""

import gc
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import intel_ft
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.agreement import TEXTS, probe, probe_logits
from intel_ft.export.ir import IRWeights, read_weights
from intel_ft.export.merge import merge
from intel_ft.export.output import new_folder, quiet
from intel_ft.inference.artifact import Artifact, resolve
from intel_ft.inference.extras import require_openvino
from intel_ft.inference.language_model import Sampling, base_config
from intel_ft.models.whole_folder import write_base_id
from intel_ft.provenance import Provenance

log = logging.getLogger(__name__)

Format = Literal["int8", "fp16"]
PACKAGES = ("openvino", "openvino_tokenizers", "openvino_genai", "nncf", "optimum.intel")
TASK = "text-generation-with-past"
SCRATCH = ".scratch"


@dataclass(frozen=True)
class ExportReport:
    """`tokenizer_agrees`: the tokenizer IR gives the same ids as the Hugging Face tokenizer."""

    folder: str
    base_model: str
    format: Format
    weights: IRWeights
    megabytes: float
    tokenizer_agrees: bool
    seconds: float


def export(
    source: str,
    output: Path,
    format: Format,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> ExportReport:
    """Write `source` (run, adapter, merged folder, base folder or id) as an IR folder.

    An adapter is merged first (`base`: see `merge`). fp16: every weight matrix in fp16. int8:
    8-bit weights with a scale and zero point for each output channel (NNCF's int8_asym), or the
    base model's own recipe where Optimum-Intel has one. The folder opens in OVModelForCausalLM and
    in OpenVINO GenAI's LLMPipeline; it is compiled and asked for a few tokens before it gets its
    name.

    Raises UserError for a source that cannot be exported, EnvironmentProblem without the `openvino`
    extra, IntelFTError where the written IR is not what it should be. Nothing is left under
    `output` then.
    """
    start = time.monotonic()
    artifact = resolve(source)
    if artifact.kind == "openvino":
        raise UserError(f"{source}: this is an OpenVINO model already")
    with new_folder(output) as partial, quiet():
        require_openvino(*PACKAGES)
        _hush_nncf()
        scratch = partial / SCRATCH
        scratch.mkdir()
        model = artifact
        if artifact.kind == "adapter":
            merge(
                source,
                scratch / "merged",
                base=base,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
            )
            model = resolve(str(scratch / "merged"))
        folder = _safe_folder(model, trust_remote_code, allow_pickle)
        if format == "fp16":
            _convert(folder, partial, model.base_model, trust_remote_code)
        else:
            _convert(folder, scratch / "fp16", model.base_model, trust_remote_code)
            _compress(scratch / "fp16", partial, model.base_model, trust_remote_code)
        _add_tokenizer(folder, partial, trust_remote_code)
        write_base_id(partial, artifact.base_model)
        _provenance(artifact).save(partial)
        shutil.rmtree(scratch)
        gc.collect()
        weights, tokenizer_agrees = _verify(partial, format)
    size = sum(path.stat().st_size for path in output.rglob("*")) / 1e6
    log.info("exported %s: %d-bit weights, %.1f MB", output, weights.bits, size)
    return ExportReport(
        folder=str(output),
        base_model=artifact.base_model,
        format=format,
        weights=weights,
        megabytes=size,
        tokenizer_agrees=tokenizer_agrees,
        seconds=time.monotonic() - start,
    )


def _hush_nncf() -> None:
    """NNCF sets its logger to INFO when it is imported, and draws tables there."""
    import nncf

    nncf.set_log_level(logging.WARNING)


def _safe_folder(model: Artifact, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """The local folder of `model`, refused where our own loader would refuse it."""
    from intel_ft.models.load import check_folder, model_folder

    config = base_config(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    folder = model_folder(config)
    check_folder(folder, config)
    return folder


def _convert(folder: Path, output: Path, base_model: str, trust_remote_code: bool) -> None:
    """Trace the model in `folder` into an IR with fp16 weights in `output`.

    bf16 weights become fp16 while they are loaded: `OVConfig(dtype="fp16")` is what asks for that,
    without it Optimum-Intel (2.2) writes bf16 constants. bf16 reaches further than fp16 (65504),
    which is why `_verify` looks for logits that are not finite.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    try:
        main_export(
            str(folder),
            output,
            task=TASK,
            ov_config=OVConfig(dtype="fp16"),
            library_name="transformers",
            trust_remote_code=trust_remote_code,
        )
    except ValueError as error:
        raise UserError(f"{folder}: Optimum-Intel cannot export it: {error}") from error
    write_base_id(output, base_model)


def _compress(folder: Path, output: Path, base_model: str, trust_remote_code: bool) -> None:
    """Compress the IR in `folder` to 8-bit weights in `output`."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from optimum.intel.openvino.configuration import get_default_quantization_config

    recipe = get_default_quantization_config(base_model, weight_format="int8") or {"bits": 8}
    # Optimum fills `tokenizer` in with the folder it reads from, a scratch path that would then
    # stand in openvino_config.json; data-free compression does not open it.
    config = OVWeightQuantizationConfig.from_dict({"tokenizer": base_model, **recipe})
    model = OVModelForCausalLM.from_pretrained(
        folder, quantization_config=config, compile=False, trust_remote_code=trust_remote_code
    )
    model.save_pretrained(output)


def _add_tokenizer(folder: Path, output: Path, trust_remote_code: bool) -> None:
    """The Hugging Face tokenizer's files, and its tokenizer and detokenizer IR, into `output`."""
    from optimum.exporters.openvino.convert import export_tokenizer

    from intel_ft.config import ModelConfig
    from intel_ft.models.load import load_tokenizer

    tokenizer = load_tokenizer(
        ModelConfig(name_or_path=str(folder), trust_remote_code=trust_remote_code)
    )
    tokenizer.save_pretrained(output)
    export_tokenizer(tokenizer, output, task=TASK)  # changes its padding side; swallows failures
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        if not (output / name).is_file():
            raise UserError(
                f"{folder}: openvino-tokenizers cannot convert this {type(tokenizer).__name__} "
                f"({name} was not made), and OpenVINO GenAI does not run without it"
            )


def _provenance(artifact: Artifact) -> Provenance:
    return Provenance(
        kind="openvino",
        base_model=artifact.base_model,
        base_revision=artifact.base_revision,
        template=artifact.template or "auto",
        system_prompt=artifact.system_prompt,
        version=intel_ft.__version__,
    )


def _verify(folder: Path, format: Format) -> tuple[IRWeights, bool]:
    """Read back what was written: its types, its logits, a few generated tokens, its tokenizer."""
    import numpy as np

    from intel_ft.inference.openvino_lm import load_openvino

    weights = read_weights(folder)
    wanted = {"int8": ("i8", "u8"), "fp16": ("f16",)}[format]
    # The remainder: norms, scales and rotary frequencies; in fp16 a few scalars stay f32.
    if weights.share(*wanted) < 0.9:
        raise IntelFTError(
            f"the exported IR holds {weights.elements} weight elements by type, not {format}"
        )
    model: Any = load_openvino(resolve(str(folder)))
    if not np.isfinite(probe_logits(model, probe(model.tokenizer))).all():
        raise IntelFTError(
            "the exported IR computes NaN or infinity: a weight or activation of this model is "
            "beyond what fp16 holds (65504)"
        )
    prompt = model.tokenizer(TEXTS[0])["input_ids"]
    model.generate(prompt, Sampling(max_new_tokens=4))
    agrees = _tokenizer_agrees(folder, model.tokenizer)
    if not agrees:
        log.warning(
            "the tokenizer IR gives other ids than the Hugging Face tokenizer: prompts given to "
            "OpenVINO GenAI as text will differ; intel-ft itself is not affected"
        )
    return weights, agrees


def _tokenizer_agrees(folder: Path, tokenizer: Any) -> bool:
    import openvino_genai

    converted = openvino_genai.Tokenizer(str(folder))
    return all(
        converted.encode(text).input_ids.data[0].tolist() == tokenizer(text)["input_ids"]
        for text in (*TEXTS, "naïve café 東京 🙂  two spaces\t\n")
    )
