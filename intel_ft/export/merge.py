"""Merge an adapter into a freshly loaded bf16 base, check the result, and save it."""

import gc
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import intel_ft
from intel_ft.artifacts.int4_base import require_any_base
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import Artifact, resolve
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.logit_agreement import (
    Agreement,
    compare_logits,
    probe_logits,
    probe_sequences,
    typical_error,
)
from intel_ft.export.output import new_folder, quiet
from intel_ft.models.adapter_match import require_matching_base
from intel_ft.runtimes.language_model import base_config, tokenizer_config

logger = logging.getLogger(__name__)

ROUNDING_SLACK = 1.25
EFFECT_SHARE = 0.25
"""How far the merged logits may be from base plus adapter: see `tolerance`.

A merged weight is W + BA rounded to bf16, where the adapter model keeps BA in fp32. The effect of
such rounding on the logits depends on the model: 0.5 % for 2 layers, 2.8 % for 24 and 6.2 % for 32
layers of random weights, with and without AMX. So no fixed bound fits. Instead the merged weights
are rounded once more, at random, and the logits compared: `rounding`. The error of correct merges
was 0.65 to 0.97 times `rounding`, over 2 to 32 layers, LoRA, rsLoRA and DoRA, and 0.34 to 0.95
times over six families of mixtures of experts (the largest of `_DRAWS` roundings). A wrong merge
(not applied, wrong scaling, tied embeddings changed twice) is off by the adapter's effect or more,
which may be small: what rounding does not explain has to be a small share of that effect.
"""
_DRAWS = 3
LOST = 2.0
"""An effect below so many times `rounding` may be lost in it, which is said."""


@dataclass(frozen=True)
class MergeReport:
    """How well the merged model agrees with base plus adapter.

    `agreement`: of the folder as written with base plus adapter, of a reward model that of the
    hidden states which the score is computed from. Each as the median of the relative
    error over positions: `adapter_effect`, the base without the adapter; `rounding`, the merged
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

    `base` is the base model's current location, where it differs from training. The written model
    is loaded again and its logits compared with base plus adapter. Needs memory for one copy of
    the base in bf16.

    Raises UserError where `source` has no adapter, the adapter is damaged, diverged (NaN) or from
    another base, or the base is quantized; IntelFTError where the merged model does not agree.
    Nothing is left in `output` then.
    """
    start = time.monotonic()
    artifact = resolve(source)
    if artifact.kind != "adapter":
        raise UserError(
            f"{source}: no adapter to merge: this is a {artifact.kind} model, use it as it is"
        )
    require_any_base(artifact.folder)
    moved = replace(artifact, base_model=base, base_revision=None) if base else artifact
    config = base_config(moved, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    with new_folder(output) as partial, quiet():
        agreement, effect, rounding = _merge_into(artifact, config, partial)
    logger.info(
        "merged %s: relative error of the logits %.4f against base plus adapter (effect of the "
        "adapter: %.4f)",
        artifact.location,
        agreement.relative_error,
        effect,
    )
    if effect <= LOST * rounding:
        logger.warning(
            "%s: bf16 rounding alone changes the logits by %.4f, the adapter by %.4f: the merged "
            "model may have lost most of the adapter's effect",
            artifact.location,
            rounding,
            effect,
        )
    return MergeReport(
        folder=str(output),
        base_model=artifact.base_model,
        agreement=agreement,
        adapter_effect=effect,
        rounding=rounding,
        seconds=time.monotonic() - start,
    )


def _merge_into(
    artifact: Artifact, config: ModelConfig, folder: Path
) -> tuple[Agreement, float, float]:
    """Write the merged model; returns agreement, adapter_effect and rounding of MergeReport."""
    import torch

    from intel_ft.artifacts.model_folder import save_whole
    from intel_ft.models.load import load_base, load_tokenizer, model_folder
    from intel_ft.models.reward import load_reward_model, with_score
    from intel_ft.models.saved_adapter import apply_adapter
    from intel_ft.models.tokenizer import copy_tokenizer
    from intel_ft.models.weight_files import check_finite

    _refuse_quantized(config)
    require_matching_base(artifact, config)
    check_finite(model_folder(config))
    tokenizer = load_tokenizer(
        tokenizer_config(artifact, trust_remote_code=config.trust_remote_code)
    )
    base = load_base(config, torch.bfloat16)
    generation = base.generation_config
    _refuse_tied(base, artifact)
    scores = artifact.is_reward_model
    model = apply_adapter(with_score(base) if scores else base, artifact.folder)
    sequences = probe_sequences(tokenizer)
    reference = _probe(model, tokenizer, sequences)
    with model.disable_adapter():
        without = _probe(model, tokenizer, sequences)

    merged = model.merge_and_unload()
    if scores:
        merged.score.to(torch.bfloat16)
    else:
        merged.generation_config = generation  # TorchLM replaced it
    save_whole(merged, tokenizer, folder, artifact.base_model, model_folder(config))
    copy_tokenizer(tokenizer, folder)
    Provenance(
        kind="merged",
        base_model=artifact.base_model,
        base_revision=artifact.base_revision,
        template=artifact.template or "auto",
        system_prompt=artifact.system_prompt,
        version=intel_ft.__version__,
        loss_on=artifact.loss_on,
        start_adapter=artifact.start_adapter,
    ).save(folder)

    del base, model, merged
    gc.collect()
    written = ModelConfig(name_or_path=str(folder), trust_remote_code=config.trust_remote_code)
    saved = (load_reward_model if scores else load_base)(written, torch.bfloat16)
    logits = _probe(saved, tokenizer, sequences)
    agreement = compare_logits(reference, logits)
    rounding = _rounding(saved, lambda: _probe(saved, tokenizer, sequences), logits)
    effect, error = typical_error(reference, without), typical_error(reference, logits)
    allowed = tolerance(rounding, effect)
    if not error <= allowed:  # NaN is rejected, too
        raise IntelFTError(
            f"{artifact.location}: the merged model does not agree with base plus adapter: "
            f"typical relative error of the logits {error:.3f}, where the adapter's "
            f"effect is {effect:.3f} and bf16 rounding's {rounding:.3f} (at most {allowed:.3f} is "
            "allowed); the adapter still works unmerged"
        )
    return agreement, effect, rounding


def _probe(model: Any, tokenizer: Any, sequences: list[Any]) -> Any:
    """The logits of a language model; of a reward model, what its score is computed from."""
    import numpy as np

    from intel_ft.runtimes.torch_lm import TorchLM
    from intel_ft.runtimes.torch_reward import TorchReward

    if model.can_generate():
        return probe_logits(TorchLM(model, tokenizer), sequences)
    reward = TorchReward(model, tokenizer)
    return np.concatenate([reward.hidden_states(tokens) for tokens in sequences])


def tolerance(rounding: float, effect: float) -> float:
    """The relative error of the logits that a correct merge may have."""
    return math.hypot(ROUNDING_SLACK * rounding, EFFECT_SHARE * effect)


def _refuse_tied(model: Any, artifact: Artifact) -> None:
    """Raise UserError for an adapter on one of two embeddings that share one weight."""
    from peft import PeftConfig

    from intel_ft.models.targets import refuse_tied

    config = PeftConfig.from_pretrained(artifact.location)
    for key in ("target_modules", "modules_to_save"):
        names = getattr(config, key, None) or []
        refuse_tied(
            model, names if isinstance(names, str) else list(names), f"{artifact.location}: {key}"
        )


def _rounding(model: Any, compute: Callable[[], Any], logits: Any) -> float:
    """The typical error of the logits if the weights are rounded once more; changes `model`.

    Mixtures of experts are rounded several times, because one more rounding may send many tokens to
    other experts, or none. The largest of the changes counts.
    """
    draws = _DRAWS if any(_is_fused(weight) for weight in model.parameters()) else 1
    largest = 0.0
    for seed in range(draws):
        _round_once_more(model, seed)
        before, logits = logits, compute()
        largest = max(largest, typical_error(before, logits))
    return largest


def _round_once_more(model: Any, seed: int) -> None:
    """Perturb every weight matrix, in place, by up to one bf16 rounding (2^-8 of a weight)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            for matrix in parameter if _is_fused(parameter) else [parameter]:
                if matrix.ndim == 2:
                    noise = torch.rand(matrix.shape, generator=generator).sub_(0.5).mul_(2.0**-7)
                    matrix.copy_(matrix.float() * (1 + noise))


def _is_fused(weight: Any) -> bool:
    """Whether it holds a matrix per expert, unlike a convolution's weight."""
    return bool(weight.ndim == 3 and weight.shape[1] > 1)


def _refuse_quantized(config: ModelConfig) -> None:
    """Raise UserError for a quantized base: merging would round the adapter to its precision."""
    from intel_ft.models.load import model_folder
    from intel_ft.models.quantized import refuse_quantized

    try:
        refuse_quantized(model_folder(config), training=True)
    except UserError as error:
        raise UserError(f"{error}; name that model with --base") from None
