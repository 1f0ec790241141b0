"""Values that several trainers write the same way, in our terms; called from the dialects.

Optimizers, schedulers and trackers are those of transformers.TrainingArguments, which Axolotl and
LLaMA-Factory pass through: https://huggingface.co/docs/transformers/main_classes/trainer
"""

import math
from typing import Any

from intel_ft.config import MethodConfig, ModelConfig, TrainConfig
from intel_ft.recipes.translation import Translation, choices

SHARED_NEEDLESS = {
    "fp16*": "weights and products are bfloat16 here, which needs no loss scaling",
    "tf32": "a CUDA number format",
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
    "device_map": "the model lies in this machine's memory",
    "low_cpu_mem_usage": "weights are mapped from their file",
    "use_cpu": "it is what runs here",
    "no_cuda": "it is what runs here",
    "include_num_input_tokens_seen": "metrics.jsonl counts tokens each step",
    "include_tokens_per_second": "metrics.jsonl has it each step",
    "skip_memory_metrics": "metrics.jsonl has the memory each step",
    "use_liger_kernel": "CUDA kernels; the loss is chunked and fused here as well",
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

_SAME_UPDATE = {
    "adamw_hf": "the same update",
    "adamw_apex_fused": "the same update",
    "paged_adamw": "the same update; states lie in main memory anyway",
    "paged_adamw_8bit": "states in 32 bit: an adapter's are small",
    "adamw_8bit": "states in 32 bit: an adapter's are small",
    "adamw_bnb_8bit": "states in 32 bit: an adapter's are small",
}


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
    elif note := _SAME_UPDATE.get(str(value)):
        t.put("train.optimizer", "adamw_torch_fused", f"{old}: {value}", note)
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


def batch(t: Translation, per_device: str, default: int, devices: int) -> None:
    """examples a device x accumulation x devices -> examples a step over all ranks."""
    size, steps = t.read(per_device, whole), t.read("gradient_accumulation_steps", whole)
    size, steps = size or default, steps or 1
    old = f"{per_device}: {size} x gradient_accumulation_steps: {steps} x {devices} device(s)"
    note = "--devices says how many it ran on"
    t.put("train.global_batch_size", size * steps * devices, old, note)


def warmup(t: Translation, default: float = 0.0) -> None:
    """A share of the steps; a number of steps becomes one where the steps are known."""
    absent = "warmup_steps" not in t.left and "warmup_ratio" not in t.left
    steps, ratio = t.read("warmup_steps", number), t.read("warmup_ratio", number)
    total = t.config.get("train", {}).get("max_steps")
    if ratio is not None:
        t.put("train.warmup_ratio", ratio, f"warmup_ratio: {ratio}")
        if steps is not None:
            t.cannot("warmup_steps", steps, "warmup_ratio was taken")
    elif steps is not None and steps < 1:  # Transformers 5 takes a share here, too
        t.put("train.warmup_ratio", steps, f"warmup_steps: {steps}")
    elif steps is not None and total:
        value = round(min(steps / total, 1.0), 6)
        t.put("train.warmup_ratio", value, f"warmup_steps: {steps:g}", f"of {total} steps")
    elif steps is not None:
        t.cannot("warmup_steps", steps, "set train.warmup_ratio to it divided by the run's steps")
    elif absent:
        t.put("train.warmup_ratio", default, f"{t.dialect}'s default")


def checkpoints(t: Translation, save_every: int | None) -> None:
    """When to save and evaluate; epochs and shares of a run have no counterpart in steps."""
    for what, key in (("save", "train.save_steps"), ("eval", "train.eval_steps")):
        strategy = t.take(f"{what}_strategy")
        if strategy is None and what == "eval":
            strategy = t.take("evaluation_strategy")
        default = save_every if what == "save" and strategy in (None, "steps") else None
        t.convert(f"{what}_steps", key, whole, default)
        if strategy == "steps":
            t.meaningless.append(f"{what}_strategy: steps: {key} is in steps")
        elif strategy not in (None, "no"):
            t.cannot(f"{what}_strategy", strategy, f"{key} is in steps")
        elif strategy == "no":
            t.off.append(f"{what}_strategy")
    t.convert("save_total_limit", "train.keep_checkpoints", whole)


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


def precision(t: Translation, old: str) -> None:
    """bf16 asked for: what is taken here anyway where the CPU has it."""
    value = t.take(old)
    if value is not None:
        dtype = "auto" if value == "auto" else "bfloat16"
        t.put("model.dtype", dtype, f"{old}: {value}")


def _known(value: str, known: tuple[Any, ...]) -> str:
    if value not in known:
        raise ValueError(f"known here are {_list(known)}")
    return value


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))
