"""The benchmark's workloads: seeded random models and examples of known shapes.

Random weights and tokens take as long as real ones, and nothing has to be downloaded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.int4_base import Int4Base
from intel_ft.artifacts.ir_weights import CompressedTensor, pack
from intel_ft.errors import UserError
from intel_ft.templates.answers import pairs_of
from intel_ft.templates.examples import Examples

Lengths = Literal["alpaca", "long", "fixed"]
Loss = Literal["sft", "dpo"]


@dataclass(frozen=True)
class Workload:
    """A Llama-shaped model, or with `experts` a Qwen3-MoE-shaped one, and its examples.

    experts: of each layer, each of the width `intermediate`, of which a token meets `active`;
    head_dim: None for hidden / heads; lengths: see `synthetic_examples`; row_tokens: maximum tokens
    in a packed row; batch: examples per optimizer step; steps: optimizer steps before the examples
    repeat; loss: with dpo an example is a pair of answers.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    lengths: Lengths = "alpaca"
    row_tokens: int = 2048
    batch: int = 16
    steps: int = 64
    experts: int = 0
    active: int = 0
    head_dim: int | None = None
    loss: Loss = "sft"


_A3B: dict[str, Any] = {"experts": 128, "active": 8, "head_dim": 128}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("small", 1024, 2816, 8, 16, 16, 32000),
        Workload("llama2-7b-slice", 4096, 11008, 4, 32, 32, 32000),
        Workload("llama2-7b", 4096, 11008, 32, 32, 32, 32000),
        Workload("llama3-8b-slice", 4096, 14336, 4, 32, 8, 128256),
        Workload("qwen3-30b-a3b-slice", 2048, 768, 4, 32, 4, 151936, **_A3B),
        Workload("qwen3-30b-a3b", 2048, 768, 48, 32, 4, 151936, **_A3B),
        Workload("tiny", 64, 176, 2, 4, 4, 256, row_tokens=1024, batch=8, steps=16),
        Workload("tiny-mixture", 64, 32, 2, 4, 2, 256, "alpaca", 1024, 8, 16, 8, 2),
    )
}


def workload(
    name: str,
    lengths: str = "alpaca",
    row_tokens: int | None = None,
    batch: int | None = None,
    loss: Loss = "sft",
) -> Workload:
    """The named workload, with the given changes.

    loss: dpo is for alpaca's lengths. `long` has longer rows and smaller batches by default,
    `fixed` has one row per step. Raises UserError for an unknown name, unknown lengths, and rows
    too short for the examples.
    """
    if name not in WORKLOADS:
        raise UserError(f"unknown workload {name!r}: choose one of {', '.join(WORKLOADS)}")
    if lengths not in get_args(Lengths):
        choices = ", ".join(get_args(Lengths))
        raise UserError(f"unknown lengths {lengths!r}: choose one of {choices}")
    if loss == "dpo" and lengths != "alpaca":
        raise UserError(f"--loss dpo has pairs of alpaca's lengths: leave out --lengths {lengths}")
    chosen = replace(WORKLOADS[name], loss=loss)
    if lengths == "long":
        chosen = replace(chosen, lengths="long", row_tokens=8192, batch=2)
    if lengths == "fixed":
        chosen = replace(chosen, lengths="fixed", batch=1)
    longest = {"alpaca": 800, "long": 8000, "fixed": 8}[lengths] * (2 if loss == "dpo" else 1)
    if row_tokens is not None and row_tokens < longest:
        raise UserError(
            f"rows of {row_tokens} tokens are too short: {lengths} examples need at least {longest}"
        )
    return replace(chosen, row_tokens=row_tokens or chosen.row_tokens, batch=batch or chosen.batch)


def synthetic_examples(workload: Workload, seed: int) -> Examples:
    """`batch * steps` examples of random tokens.

    `alpaca`: prompts of exp(N(3.9, 0.5)) tokens within 20 to 400 and completions of
    exp(N(3.8, 0.9)) within 5 to 400, which are supervised. `long`: documents of 2000 to 8000
    tokens, all supervised except the first. `fixed`: `row_tokens` tokens each, the second half
    supervised. With loss dpo, they are pairs: two such completions of each prompt.
    """
    random = np.random.default_rng(seed)
    count = workload.batch * workload.steps
    if workload.lengths == "long":
        completion = random.integers(2000, 8001, count) - 1
        prompt = np.ones(count, dtype=np.int64)
    elif workload.lengths == "fixed":
        prompt = np.full(count, workload.row_tokens // 2)
        completion = workload.row_tokens - prompt
    else:
        prompt = _log_normal(random, 3.9, 0.5, 20, 400, count)
        if workload.loss == "dpo":
            prompt, count = prompt.repeat(2), 2 * count
        completion = _log_normal(random, 3.8, 0.9, 5, 400, count)
        if workload.loss == "dpo":
            return pairs_of(random_examples(random, prompt, completion, workload.vocabulary))
    return random_examples(random, prompt, completion, workload.vocabulary)


def random_examples(
    random: np.random.Generator,
    prompt: npt.NDArray[np.int64],
    completion: npt.NDArray[np.int64],
    vocabulary: int,
) -> Examples:
    """Random examples: example i has prompt[i] tokens, then completion[i] supervised tokens."""
    offsets = np.concatenate(([0], np.cumsum(prompt + completion)))
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], prompt + completion)
    return Examples(
        tokens=random.integers(3, vocabulary, offsets[-1], dtype=np.int32),
        supervised=position >= np.repeat(prompt, prompt + completion),
        offsets=offsets,
    )


def _log_normal(
    random: np.random.Generator, mean: float, sigma: float, low: int, high: int, count: int
) -> npt.NDArray[np.int64]:
    return np.clip(np.exp(random.normal(mean, sigma, count)), low, high).astype(np.int64)


def random_model(
    workload: Workload,
    seed: int,
    attention: str,
    device: Any = "cpu",
    experts: str | None = None,
) -> Any:
    """The frozen base model in bf16 on `device`; see `with_noise`.

    experts: Transformers' implementation of a mixture's experts, None for its default.
    """
    return with_noise(lambda: _build(workload, attention, experts), seed, device)


def with_noise(build: Callable[[], Any], seed: int, device: Any = "cpu") -> Any:
    """Build a frozen model on `device` and fill its weights with N(0, 0.02) noise.

    It is built on `device`, so there is never a second copy. All weights repeat one block of noise,
    each from a different offset, because drawing 7 billion numbers takes minutes.
    """
    import torch
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device(device):
        model = build()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2**22, generator=generator).mul_(0.02).bfloat16().to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                start = int(torch.randint(len(noise), (), generator=generator))
                rolled = noise.roll(start)
                for part in parameter.view(-1).split(len(noise)):
                    part.copy_(rolled[: len(part)])
    return model.eval().requires_grad_(False)


def int4_base(model: Any) -> Int4Base:
    """The linear layers of a base model in the form of an exported int4 base.

    Groups of 128 have a scale and a zero point, as NNCF's have by default. The codes are the
    nearest of 16 steps between a group's smallest and largest weight: on random weights nothing
    else is worth its time.
    """
    from intel_ft.models.frozen_base import frozen_linears

    names = {id(module): name for name, module in model.named_modules()}
    weights = {
        names[id(linear)]: _in_4_bits(linear.weight) for _, _, linear in frozen_linears(model)
    }
    return Int4Base(Path(), weights, digest="")


def _in_4_bits(weight: Any) -> CompressedTensor:
    from intel_ft.layers.compressed import codes_of

    rows, size = weight.shape
    group = math.gcd(size, 128)
    grouped = weight.float().view(rows, size // group, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1)
    scales = ((high.clamp(min=0) - low).clamp(min=1e-8) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = codes_of(weight, scales.float(), zeros, (0, 15)).byte()
    return CompressedTensor(
        codes=pack(codes.view(rows, size).numpy()),
        scales=scales.numpy(),
        zeros=zeros.byte().numpy(),
        shape=(rows, size),
        bits=4,
        signed=False,
        offsets=(0, 0, None),
    )


def shape_model(workload: Workload, rank: int) -> Any:
    """The model with LoRA on the meta device, which takes no memory: for counting operations."""
    import torch
    from peft import get_peft_model

    with torch.device("meta"):
        base = _build(workload, "sdpa").requires_grad_(False)
        return get_peft_model(base, lora_config(base, rank))


def lora_config(model: Any, rank: int) -> Any:
    """LoRA on all linear layers and experts without dropout, as every contender trains it."""
    from intel_ft.config_method import MethodConfig
    from intel_ft.models.adapter import lora_config as config_for

    return config_for(model, MethodConfig(r=rank, alpha=2 * rank))


def _build(workload: Workload, attention: str, experts: str | None = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    kind: Any = Qwen3MoeConfig if workload.experts else LlamaConfig
    mixture = {
        "moe_intermediate_size": workload.intermediate,
        "num_experts": workload.experts,
        "num_experts_per_tok": workload.active,
        "norm_topk_prob": True,
    }
    config = kind(
        hidden_size=workload.hidden,
        intermediate_size=workload.intermediate,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.kv_heads,
        vocab_size=workload.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        head_dim=workload.head_dim or workload.hidden // workload.heads,
        **(mixture if workload.experts else {}),
    )
    chosen = {} if experts is None else {"experts_implementation": experts}
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=attention, **chosen
    )
