"""A plain LoRA training with Transformers and peft, the reference that ours has to agree with.

It uses nothing of intel_ft.models and trains on one example at a time, in the plan's order.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.templates.examples import Examples


def train(config: Config, base: Path, examples: Examples, adapter: Path) -> tuple[float, float]:
    """Train as `config` says and save the adapter; returns (tokens, seconds of all steps)."""
    settings, method = config.train, config.method
    transformers.set_seed(settings.seed)
    model = get_peft_model(
        load(base),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=method.r,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=method.target_modules,
        ),
    ).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=settings.global_batch_size,
        max_tokens_per_row=int(examples.lengths.max()),
        seed=settings.seed,
    )
    steps = settings.max_steps or plan.steps_per_epoch
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    warm_up = math.ceil(settings.warmup_ratio * steps)
    scheduler = transformers.get_scheduler(settings.scheduler, optimizer, warm_up, steps)
    tokens, began = 0, time.perf_counter()
    for step in plan.steps(0, steps):
        for index in step.examples:
            loss = loss_sum(model, examples, int(index)) / step.supervised_tokens
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm or math.inf)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        tokens += int(examples.lengths[step.examples].sum())
    seconds = time.perf_counter() - began
    model.save_pretrained(str(adapter))
    return tokens, seconds


@torch.no_grad()
def validation_loss(base: Path, adapter: Path | None, examples: Examples) -> float:
    """Nats per supervised token over `examples`, of the base or of the base with an adapter."""
    model = load(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    total = sum(float(loss_sum(model, examples, index)) for index in range(len(examples)))
    return total / int(examples.supervised.sum())


def load(base: Path) -> Any:
    """The model in bf16 with Transformers' own attention through torch's sdpa."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.bfloat16, attn_implementation="sdpa"
    )


def loss_sum(model: Any, examples: Examples, index: int) -> Tensor:
    """Cross-entropy summed over one example's supervised tokens, from all its logits."""
    tokens, supervised = examples[index]
    ids = torch.from_numpy(tokens).long()
    labels = torch.where(torch.from_numpy(supervised), ids, -100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids[None], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[1:], reduction="sum")
