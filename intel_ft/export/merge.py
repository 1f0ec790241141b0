"""An adapter merged into a freshly loaded bf16 base, checked and saved; called from export.openvino
and cli.merge.
"""

import gc
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import intel_ft
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import Artifact, read_json, resolve
from intel_ft.config import ModelConfig
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.adapter_match import require_belonging
from intel_ft.export.check_weights import check_weights
from intel_ft.export.logit_agreement import Agreement, compare, probe, probe_logits
from intel_ft.export.output import new_folder, quiet
from intel_ft.runtimes.language_model import base_config, tokenizer_config

log = logging.getLogger(__name__)

SLACK = 2.0
LEAST_LIMIT = 0.01
"""The merged logits may be off by SLACK times what rounding alone does to this very model.

A merged weight is W + BA rounded to bf16 once, where the adapter model keeps BA in fp32, and how
far such roundings carry depends on the model: 0.5 % for 2 layers, 2.8 % for 24 and 6.2 % for 32
layers of random weights, the same with and without AMX. So there is no fixed bound to set. Instead
the merged weights are rounded once more, at random, and the logits compared: `rounding`. The error
was 0.65 to 0.97 times that over 2 to 32 layers, LoRA, rsLoRA and DoRA. A merge gone wrong (not
applied, another scaling, tied embeddings changed on both sides) is off by about the adapter's
effect, or more.
"""


@dataclass(frozen=True)
class MergeReport:
    """`agreement`: the folder as written against base plus adapter. On the same scale as its
    relative error: `adapter_effect`, of the base without adapter, and `rounding`, of the merged
    model with its weights rounded to bf16 once more.
    """

    folder: str
    base_model: str
    agreement: Agreement
    adapter_effect: float
    rounding: float
    seconds: float


def merge(
    source: str,
    output: Path,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> MergeReport:
    """Merge the adapter of a run or adapter folder into its base and write a bf16 model folder.

    `base` is where the base model is now, if not where training found it. What was written is
    loaded again and its logits compared with base plus adapter. Needs memory for one copy of the
    base in bf16.

    Raises UserError where `source` holds no adapter, the adapter is damaged, diverged (NaN) or of
    another base, or the base is quantized; IntelFTError where the merged model does not agree.
    Nothing is left under `output` then.
    """
    start = time.monotonic()
    artifact = resolve(source)
    if artifact.kind != "adapter":
        raise UserError(
            f"{source}: there is no adapter to merge, it is a {artifact.kind} model: use it as it "
            "is"
        )
    config = base_config(artifact, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if base:
        config = config.model_copy(update={"name_or_path": base, "revision": None})
    with new_folder(output) as partial, quiet():
        agreement, effect, rounding = _merge_into(artifact, config, partial)
    log.info(
        "merged %s: relative error %.4f against base plus adapter (the adapter's effect: %.4f)",
        artifact.location,
        agreement.relative_error,
        effect,
    )
    if effect <= SLACK * rounding:
        log.warning(
            "%s: bf16 rounding alone changes the logits by %.4f, the adapter by %.4f: little of "
            "it may be left after merging",
            artifact.location,
            rounding,
            effect,
        )
    return MergeReport(
        str(output), artifact.base_model, agreement, effect, rounding, time.monotonic() - start
    )


def _merge_into(
    artifact: Artifact, config: ModelConfig, folder: Path
) -> tuple[Agreement, float, float]:
    """Write the merged model into `folder`; agreement, adapter's effect, rounding (MergeReport)."""
    import torch

    from intel_ft.artifacts.model_folder import save_whole
    from intel_ft.models.load import load_base, load_tokenizer, model_folder
    from intel_ft.models.saved_adapter import apply_adapter
    from intel_ft.runtimes.torch_lm import TorchLM

    _refuse_quantized(config)
    require_belonging(artifact, config)
    check_weights(model_folder(config), fp16=False)
    tokenizer = load_tokenizer(
        tokenizer_config(artifact, trust_remote_code=config.trust_remote_code)
    )
    base = load_base(config, torch.bfloat16)
    generation = base.generation_config
    model = apply_adapter(base, artifact.folder)
    sequences = probe(tokenizer)
    reference = probe_logits(TorchLM(model, tokenizer), sequences)
    with model.disable_adapter():
        without = probe_logits(TorchLM(model, tokenizer), sequences)

    merged = model.merge_and_unload()
    merged.generation_config = generation  # TorchLM has put its own in place
    save_whole(merged, tokenizer, folder, artifact.base_model)
    tokenizer.save_pretrained(folder)
    Provenance(
        kind="merged",
        base_model=artifact.base_model,
        base_revision=artifact.base_revision,
        template=artifact.template or "auto",
        system_prompt=artifact.system_prompt,
        version=intel_ft.__version__,
    ).save(folder)

    del base, model, merged
    gc.collect()
    saved = load_base(
        ModelConfig(name_or_path=str(folder), trust_remote_code=config.trust_remote_code),
        torch.bfloat16,
    )
    logits = probe_logits(TorchLM(saved, tokenizer), sequences)
    agreement = compare(reference, logits)
    _round_once_more(saved)
    rounding = compare(logits, probe_logits(TorchLM(saved, tokenizer), sequences)).relative_error
    limit = max(LEAST_LIMIT, SLACK * rounding)
    if not agreement.relative_error <= limit:  # so that NaN is refused too
        raise IntelFTError(
            f"{artifact.location}: the merged model does not agree with base plus adapter: its "
            f"logits are off by {agreement.relative_error:.3f} of their size where rounding "
            f"explains {limit:.3f}; the adapter itself still works unmerged"
        )
    return agreement, compare(reference, without).relative_error, rounding


def _round_once_more(model: Any) -> None:
    """Move every weight matrix, in place, by up to one bf16 rounding (2^-8 of each weight)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.rand(parameter.shape, generator=generator).sub_(0.5).mul_(2.0**-7)
                parameter.copy_(parameter.float() * (1 + noise))


def _refuse_quantized(config: ModelConfig) -> None:
    """Raise UserError for a quantized base: merging would round the adapter to its few bits."""
    from intel_ft.models.load import model_folder

    quantization = read_json(model_folder(config) / "config.json").get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown method")
        raise UserError(
            f"{config.name_or_path}: this base is quantized ({method}): merge into the unquantized "
            "model it was made from, named with --base"
        )
