"""Values that several trainers write the same way, in our terms; called from the dialects.

Optimizers, schedulers and trackers are those of transformers.TrainingArguments, which Axolotl and
LLaMA-Factory pass through: https://huggingface.co/docs/transformers/main_classes/trainer
"""

import math
from typing import Any

from intel_ft.config import MethodConfig, ModelConfig, TrainConfig
from intel_ft.recipes.translation import Translation, choices

SHARED_NEEDLESS = {
    "fp16_*": "evaluation is in the precision of training, loss scaling is PyTorch's",
    "tf32": "products are in model.dtype",
    "deepspeed*": "each rank holds the whole frozen model, only the adapter's gradients are shared",
    "fsdp*": "each rank holds the whole frozen model, only the adapter's gradients are shared",
    "ddp_*": "ranks exchange gradients once a step; see backend.collective",
    "local_rank": "the launcher says it",
    "dataloader_*": "tokens lie in memory, in packed rows",
    "group_by_length": "rows are packed: nothing is padded",
    "length_column_name": "rows are packed: nothing is padded",
    "remove_unused_columns": "columns a format does not need are left alone",
    "torch_compile*": "decoder layers are compiled kernels where they can be",
    "gradient_checkpointing_kwargs.*": "checkpoints are of whole decoder layers, non-reentrant",
    "use_cache": "training keeps no cache",
    "per_device_eval_batch_size": "evaluation packs rows as training does",
    "eval_accumulation_steps": "evaluation keeps a sum, no logits",
    "save_safetensors": "always",
    "load_best_model_at_end": "the adapter that was best on data.eval is always the one kept",
    "logging_dir": "TensorBoard's files go into the run's folder",
    "logging_first_step": "the first step is logged wherever logging_steps is 1",
    "disable_tqdm": "progress goes to stderr only",
    "overwrite_output_dir": "say `intel-ft train --overwrite`",
    "resume_from_checkpoint": "say `intel-ft train --resume`",
    "do_train": "that is what the verb says",
    "do_eval": "data.eval or data.eval_fraction says it",
    "ddp_timeout": "backend.timeout is ours",
    "hub_*": "say `intel-ft push` after training",
    "push_to_hub": "say `intel-ft push` after training",
    "run_name": "the run's folder is its name",
    "remove_columns": "columns a format does not need are left alone",
    "device_map": "each rank has the whole model",
    "low_cpu_mem_usage": "weights are mapped from their file",
    "include_num_input_tokens_seen": "metrics.jsonl counts tokens each step",
    "include_tokens_per_second": "metrics.jsonl has it each step",
    "skip_memory_metrics": "metrics.jsonl has the memory each step",
    "use_liger_kernel": "the loss is chunked and fused here as well",
}

SHARED_UNSUPPORTED = {
    "neftune_noise_alpha": "noise on embeddings is not available",
    "label_smoothing_factor": "label smoothing is not available",
    "lr_scheduler_kwargs*": "schedulers take no arguments here",
    "optim_args*": "optimizers take no arguments here",
    "optim_target_modules": "GaLore and its kin are not available",
    "auto_find_batch_size": "the batch is what you say; memory is bounded by max_tokens_per_row",
    "data_seed": "one seed is for data and weights: train.seed",
}

_IN_32_BIT = "states in 32 bit: an adapter's are small"
_NEAREST = {
    "adamw_hf": ("adamw_torch_fused", "the same update"),
    "adamw_apex_fused": ("adamw_torch_fused", "the same update"),
    "adamw_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "adamw_bnb_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "paged_adamw": ("paged_adamw_32bit", "its other name"),
    "paged_adamw_8bit": ("paged_adamw_32bit", _IN_32_BIT),
}

OWN_TEMPLATE = (
    "the tokenizer's own chat template; a base without one gets that of the data's format, chatml"
    " for messages"
)
"""What data.template: auto means where the other trainer names a model family's template."""


def number(value: Any) -> float:
    """A number; YAML 1.1 reads 2e-4, without a point, as text."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise ValueError("not a number")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise ValueError("not a number") from None
    if not math.isfinite(result):
        raise ValueError("not a number")
    return result


def whole(value: Any) -> int:
    """A whole number, at least 1."""
    result = number(value)
    if result != int(result) or result < 1:
        raise ValueError("only a whole number of at least 1 can be had here")
    return int(result)


def share(value: Any) -> float:
    """A share of the examples, below 1."""
    result = number(value)
    if not 0 <= result < 1:
        raise ValueError("a number of examples: give a share, data.eval_fraction, or data.eval")
    return result


def scheduler(value: Any) -> str:
    """A learning rate schedule that we have."""
    return _known(str(value), choices(TrainConfig, "scheduler"))


def optimizer(t: Translation, old: str, default: str) -> None:
    """The optimizer, or the one that makes the same update."""
    value = t.take(old)
    if value is None:
        t.put("train.optimizer", default, f"{t.dialect}'s default")
    elif value in choices(TrainConfig, "optimizer"):
        t.put("train.optimizer", value, f"{old}: {value}")
    elif found := _NEAREST.get(str(value)):
        t.put("train.optimizer", found[0], f"{old}: {value}", found[1])
    else:
        t.cannot(old, value, f"train.optimizer has {_list(choices(TrainConfig, 'optimizer'))}")


def adam(t: Translation, names: dict[str, float]) -> None:
    """Adam's constants: what everyone has is what we have."""
    for name, usual in names.items():
        value = t.read(name, number)
        if value == usual:
            t.meaningless.append(f"{name}: {value}: it is AdamW's own value here")
        elif value is not None:
            t.cannot(name, value, f"AdamW's is {usual} here")


def report_to(t: Translation) -> None:
    """TrainingArguments.report_to: a tracker's name, several, all or none."""
    present, value = "report_to" in t.left, t.take("report_to")
    if value == "all":
        value = list(choices(TrainConfig, "report_to"))
    named = list(map(str, value)) if isinstance(value, list) else [str(value)] if value else []
    trackers(t, named, f"report_to: {value or 'none'}" if present else f"{t.dialect}'s default")


def trackers(t: Translation, named: list[str], old: str) -> None:
    """Which of the named trackers we report to."""
    known = choices(TrainConfig, "report_to")
    t.put("train.report_to", [name for name in named if name in known], old)
    for name in named:
        if name not in known:
            t.cannot("report_to", name, f"we have {_list(known)}; metrics.jsonl has it all")


def method(t: Translation, name: str, old: str) -> None:
    """The method, or LoRA on the unquantized base where this version lacks it."""
    if name in choices(MethodConfig, "name"):
        t.put("method.name", name, old)
    else:
        t.put("method.name", "lora", old, "the nearest in this version")
        t.cannot(old.partition(":")[0], name, f"this version has no method.name {name}")


def int8_base(t: Translation, old: str) -> None:
    """An 8-bit frozen base."""
    if "int8" in choices(ModelConfig, "base_dtype"):
        t.put("model.base_dtype", "int8", old)


def field_or_cannot(t: Translation, old: str, key: str, value: Any, why: str) -> None:
    """Set our `key` if this version's method section has it, else list `old` with `why`."""
    if key.partition(".")[2] in MethodConfig.model_fields:
        t.put(key, value, f"{old}: {value}")
    else:
        t.cannot(old, value, why)


def init_weights(t: Translation, old: str) -> None:
    """How the adapter starts: peft's names."""
    value = t.take(old)
    if value is None:
        return
    name = "default" if value is True else str(value).partition("_niter")[0]
    if name in choices(MethodConfig, "init"):
        t.put("method.init", name, f"{old}: {value}")
    else:
        t.cannot(old, value, f"method.init has {_list(choices(MethodConfig, 'init'))}")


def modules(value: Any) -> str | list[str]:
    """Target modules: a list, names with commas, or all of them."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if names in (["all-linear"], ["all"]):
        return "all-linear"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("expected names of modules")
    return names


def column(t: Translation, old: str, ours: str, default: str | None = None) -> None:
    """What the data calls a column or a role; None is a default that is the same as ours."""
    given = t.take(old)
    name = given or default or ours
    if name != ours:
        t.cannot(old, name, f"rename it to {ours} in the data")
    elif given:
        t.meaningless.append(f"{old}: {given}: it is the name that is read here")


def machine(t: Translation, bf16: tuple[str, ...] = ("bf16",)) -> None:
    """The precision of products, and whether a GPU may be taken. `bf16`: the trainer's keys."""
    for key in bf16:
        if (value := t.take(key)) is not None:
            t.put("model.dtype", "auto" if value == "auto" else "bfloat16", f"{key}: {value}")
    for key in ("fp16", "float16"):
        if t.flag(key):
            half_precision(t, f"{key}: true")
    for key in ("use_cpu", "no_cuda"):
        if t.flag(key):
            t.put("backend.name", "cpu", f"{key}: true")


def half_precision(t: Translation, old: str) -> None:
    """float16 asked for: GPUs without bf16 take it by themselves, CPUs do not multiply in it."""
    t.put("model.dtype", "auto", old, "float16 on a GPU without bf16, else the device's own")


def _known(value: str, known: tuple[Any, ...]) -> str:
    if value not in known:
        raise ValueError(f"known here are {_list(known)}")
    return value


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))
