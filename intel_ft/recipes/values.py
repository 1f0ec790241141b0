"""Translates values that several trainers write in the same way.

Optimizers, schedulers and trackers are those of transformers.TrainingArguments, which Axolotl and
LLaMA-Factory pass through: https://huggingface.co/docs/transformers/main_classes/trainer
"""

import math
import re
from typing import Any

from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig, TrainConfig
from intel_ft.recipes.translation import Translation, choices

SHARED_NOT_NEEDED = {
    "fp16_*": "evaluation uses the precision of training, and PyTorch scales the loss",
    "tf32": "model.dtype sets the precision of matmuls",
    "deepspeed*": "each rank holds the whole frozen model and shares only the adapter's gradients",
    "fsdp*": "each rank holds the whole frozen model and shares only the adapter's gradients",
    "ddp_*": "ranks exchange gradients once per step; see backend.collective",
    "local_rank": "the launcher determines the ranks",
    "dataloader_*": "tokens are in memory or memory-mapped, in packed rows",
    "group_by_length": "examples are packed, so there is no padding",
    "length_column_name": "examples are packed, so there is no padding",
    "remove_unused_columns": "columns that a format does not need are always ignored",
    "torch_compile*": "decoder layers use fused kernels where possible; see backend.compile",
    "gradient_checkpointing_kwargs.*": "train.activation_checkpointing recomputes whole decoder"
    " layers and is non-reentrant",
    "use_cache": "training never uses a KV cache",
    "per_device_eval_batch_size": "evaluation packs examples as training does",
    "eval_accumulation_steps": "evaluation keeps only a sum, no logits",
    "save_safetensors": "safetensors is always used",
    "load_best_model_at_end": "the best adapter is always kept (train.best_metric)",
    "logging_dir": "TensorBoard's files are in the run's folder",
    "logging_first_step": "the first step is logged if train.logging_steps is 1",
    "disable_tqdm": "progress only goes to stderr",
    "overwrite_output_dir": "use `intel-ft train --overwrite`",
    "resume_from_checkpoint": "use `intel-ft train --resume`",
    "do_train": "`intel-ft train` always trains",
    "do_eval": "data.eval or data.eval_fraction turns evaluation on",
    "ddp_timeout": "use backend.timeout",
    "hub_*": "use `intel-ft push` after training",
    "push_to_hub": "use `intel-ft push` after training",
    "run_name": "the run is named after its folder",
    "remove_columns": "columns that a format does not need are always ignored",
    "device_map": "each rank has the whole model",
    "low_cpu_mem_usage": "weights are memory-mapped",
    "include_num_input_tokens_seen": "metrics.jsonl counts the tokens of each step",
    "include_tokens_per_second": "metrics.jsonl has it for each step",
    "skip_memory_metrics": "metrics.jsonl has the memory use of each step",
    "use_liger_kernel": "the loss is always chunked and fused",
    "liger_*": "the loss is always chunked and fused, and layers use fused kernels",
    "save_only_model": "checkpoints always hold everything needed to resume",
}

SHARED_UNSUPPORTED = {
    "neftune_noise_alpha": "noise on embeddings is not supported",
    "label_smoothing_factor": "label smoothing is not supported",
    "lr_scheduler_kwargs*": "scheduler arguments are not supported",
    "optim_args*": "optimizer arguments are not supported",
    "optim_target_modules": "GaLore and similar optimizers are not supported",
    "activation_offloading": "offloading is not supported: see train.activation_checkpointing",
    "auto_find_batch_size": "the batch size is fixed; train.max_tokens_per_row limits memory",
    "data_seed": "train.seed is used for data and weights",
}

_IN_32_BIT = "states are in 32 bit, because those of an adapter are small"
_NEAREST = {
    "adamw_hf": ("adamw_torch_fused", "the same update rule"),
    "adamw_apex_fused": ("adamw_torch_fused", "the same update rule"),
    "adamw_torch_4bit": ("adamw_torch_fused", _IN_32_BIT),
    "adamw_torch_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "ao_adamw_4bit": ("adamw_torch_fused", _IN_32_BIT),
    "ao_adamw_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "ao_adamw_fp8": ("adamw_torch_fused", _IN_32_BIT),
    "torch_adamw_4bit": ("adamw_torch_fused", _IN_32_BIT),
    "adamw": ("adamw_torch_fused", "the same update rule"),
    "adamw_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "adamw_bnb_8bit": ("adamw_torch_fused", _IN_32_BIT),
    "paged_adamw": ("paged_adamw_32bit", "another name for it"),
    "paged_adamw_8bit": ("paged_adamw_32bit", _IN_32_BIT),
}

TOKENIZER_TEMPLATE = (
    "the tokenizer's chat template; if it has none, the template follows from the data's format"
    " (chatml for messages)"
)
"""Meaning of data.template: auto, where the other trainer names a model family's template."""

TEMPLATE_REMEDY = (
    "put the template into the model folder's tokenizer and set data.template to tokenizer"
)


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""The roles of turns that are read, by each of their names (docs/data.md)."""


def as_list(value: Any) -> list[Any]:
    """A list as it is, another value as a list of one."""
    return value if isinstance(value, list) else [value]


def number(value: Any) -> float:
    """A finite number; YAML 1.1 reads 2e-4, which has no decimal point, as text."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise ValueError("not a number")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise ValueError("not a number") from None
    if not math.isfinite(result):
        raise ValueError("not a number")
    return result


def positive_int(value: Any) -> int:
    """A whole number, at least 1."""
    result = number(value)
    if result != int(result) or result < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(result)


def validation_share(t: Translation, old: str) -> None:
    """Translate the size of the validation set: a share of the examples, or their number."""

    def share(value: Any) -> float:
        size = number(value)
        if 0 <= size < 1:
            return size
        if t.measured is not None and 1 <= size < t.measured.examples:
            return round(size / t.measured.examples, 6)
        raise ValueError(
            "it is a number of examples: set data.eval_fraction to a share, or set data.eval"
        )

    t.convert(old, "data.eval_fraction", share)


def scheduler(value: Any) -> str:
    """A supported learning rate schedule."""
    if value not in choices(TrainConfig, "scheduler"):
        raise ValueError(_other_than("scheduler"))
    return str(value)


def optimizer(t: Translation, old: str, default: str) -> None:
    """Translate the optimizer, to one with the same update rule if needed."""
    value = t.take(old)
    if value is None:
        t.put("train.optimizer", default, f"{t.dialect}'s default")
    elif value in choices(TrainConfig, "optimizer"):
        t.put("train.optimizer", value, f"{old}: {value}")
    elif nearest := _NEAREST.get(str(value)):
        t.put("train.optimizer", nearest[0], f"{old}: {value}", nearest[1])
    else:
        t.cannot_carry(old, value, _other_than("optimizer"))


def no_clipping(t: Translation) -> None:
    """An explicit `max_grad_norm: null`, with which TrainingArguments does not clip."""
    if "max_grad_norm" in t.left and t.left["max_grad_norm"] is None:
        t.left["max_grad_norm"] = 0


def adam(t: Translation, names: dict[str, float]) -> None:
    """List Adam's constants: only the usual values are supported."""
    for name, usual in names.items():
        value = t.read(name, number)
        if value == usual:
            t.not_needed.append(f"{name}: {value}: AdamW always uses this value")
        elif value is not None:
            t.cannot_carry(name, value, f"AdamW always uses {usual}")


def only(t: Translation, key: str, usual: tuple[str, ...], why: str) -> None:
    """Take a key that can only have `usual` values here: any other value is not carried over."""
    value = t.take(key)
    if value in usual:
        t.not_needed.append(f"{key}: {value}: {why}")
    elif value is not None:
        t.cannot_carry(key, value, why)


def four_bit_type(t: Translation, key: str) -> None:
    """Take the type of a 4-bit base, after the method; a file may name one and use none."""
    quantized = t.value_of("method.name") == "qlora" or t.value_of("model.base_dtype") == "nf4"
    usual = ("nf4",) if quantized else ("nf4", "fp4")
    only(t, key, usual, "the 4-bit type is always NF4")


def report_to(t: Translation) -> None:
    """Translate TrainingArguments.report_to: one tracker, a list, all or none."""
    present, value = "report_to" in t.left, t.take("report_to")
    if value == "all":
        value = list(choices(TrainConfig, "report_to"))
    named = list(map(str, value)) if isinstance(value, list) else [str(value)] if value else []
    trackers(t, named, f"report_to: {value or 'none'}" if present else f"{t.dialect}'s default")


def trackers(t: Translation, named: list[str], old: str) -> None:
    """Set train.report_to to those of the named trackers that are supported."""
    supported = choices(TrainConfig, "report_to")
    t.put("train.report_to", [name for name in named if name in supported], old)
    for name in named:
        if name not in supported:
            reason = f"supported are {_list(supported)}; metrics.jsonl has all metrics"
            t.cannot_carry("report_to", name, reason)


def method(t: Translation, name: str, old: str) -> None:
    """Set method.name, or LoRA on the unquantized base if this version lacks the method."""
    if t.value_of("method.name") in ("preference", "reward"):  # recipes.preferences has set it
        if name == "full":
            t.put("method.student", "full", old)
        elif name == "qlora":
            t.put("model.base_dtype", "nf4", old)
    elif name in choices(MethodConfig, "name"):
        t.put("method.name", name, old)
    else:
        t.put("method.name", "lora", old, "the nearest method in this version")
        t.cannot_carry(old.partition(":")[0], name, f"this version has no method.name={name}")


def int8_base(t: Translation, old: str) -> None:
    """Set an 8-bit frozen base."""
    if "int8" in choices(ModelConfig, "base_dtype"):
        t.put("model.base_dtype", "int8", old)


def set_if_field(t: Translation, old: str, key: str, value: Any, reason: str) -> None:
    """Set our `key` if this version's method section has it; otherwise list `old`."""
    if key.partition(".")[2] in MethodConfig.model_fields:
        t.put(key, value, f"{old}: {value}")
    else:
        t.cannot_carry(old, value, reason)


def init_weights(t: Translation, old: str) -> None:
    """Translate the adapter's initialization, in peft's names."""
    value = t.take(old)
    if value is None:
        return
    name = "default" if value is True else str(value).partition("_niter")[0]
    if name in choices(MethodConfig, "init"):
        t.put("method.init", name, f"{old}: {value}")
    else:
        t.cannot_carry(old, value, f"supported are {_list(choices(MethodConfig, 'init'))}")


def start_adapter(t: Translation, old: str, mode: str, not_used: tuple[str, ...]) -> bool:
    """Translate the adapter that training starts from; whether it is trained further.

    not_used: the file's keys of a new adapter, which the other trainer does not read then either.
    """
    value = t.take(old)
    named = (
        value if isinstance(value, list) else [one for one in str(value or "").split(",") if one]
    )
    if not named:
        return False
    if len(named) > 1:
        t.cannot_carry(old, value, "only one adapter can be the start: merge the first ones before")
        return False
    t.put("model.adapter", str(named[0]).strip(), f"{old}: {named[0]}")
    t.put("model.adapter_mode", mode, f"{old}: {named[0]}")
    if mode == "continue":
        t.take_not_needed(dict.fromkeys(not_used, "the adapter keeps its own"))
    return mode == "continue"


def new_tokens(t: Translation, old: str, note: str = "") -> None:
    """Translate tokens to add: a list, or names separated by commas.

    Special ones as well: the other trainers' data may hold their text, which becomes the token.
    """
    value = t.take(old)
    if value is None:
        return
    named = value if isinstance(value, list) else str(value).split(",")
    tokens = [str(token).strip() for token in named if str(token).strip()]
    if t.value_of("model.adapter_mode") == "continue":
        t.cannot_carry(old, value, "an adapter that is trained further keeps its own tokens")
        return
    before = t.value_of("model.add_tokens") or []
    t.put("model.add_tokens", list(dict.fromkeys(before + tokens)), f"{old}: {value}", note)


def modules(value: Any) -> str | list[str]:
    """Target modules: a list, names separated by commas, a regular expression, or all."""
    if isinstance(value, str) and not re.fullmatch(r"[\w., -]*", value):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if names in (["all-linear"], ["all"]):
        return "all-linear"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("must be a list of module names")
    return names


def targets(t: Translation, old: str) -> None:
    """Translate target modules; without them, peft chooses some by the model's architecture."""
    t.convert(old, "method.target_modules", modules)
    if t.value_of("method.target_modules") is None:
        t.not_carried_over.append(
            f"{old} is not set: peft chooses modules by model, intel-ft uses all-linear"
        )


def column(t: Translation, old: str, ours: str, default: str | None = None) -> None:
    """Translate the data's name of a column; default: the trainer's, None if it is ours."""
    given = t.take(old)
    name = str(given or default or ours)
    if name != ours:
        t.name_column(ours, name, old if given else f"{old} (default)")
    elif given:
        t.not_needed.append(f"{old}: {given}: this name is always used")


def name_in_turns(t: Translation, old: str, known: tuple[str, ...], default: str) -> None:
    """Check the data's name of a role, or of a key of its turns, against those that are read."""
    given = t.take(old)
    name = given or default
    if name not in known:
        t.cannot_carry(old, name, f"rename it to {known[0]} in the data")
    elif given:
        t.not_needed.append(f"{old}: {given}: this name is read as it is")


def truncation(t: Translation, key: str) -> None:
    """Set truncation at a maximum length, which the other trainers do without asking."""
    note = "an example whose prompt leaves no room for an answer is dropped"
    t.put("data.on_long", "truncate", f"{t.dialect} truncates at {key}", note)


def machine(t: Translation, bf16: tuple[str, ...] = ("bf16",)) -> None:
    """Translate precision and device. bf16: the trainer's keys for bfloat16."""
    for key in bf16:
        if (value := t.take(key)) is not None:
            t.put("model.dtype", "auto" if value == "auto" else "bfloat16", f"{key}: {value}")
    for key in ("fp16", "float16"):
        if t.flag(key):
            half_precision(t, f"{key}: true")
    for key in ("use_cpu", "no_cuda"):
        if t.flag(key):
            t.put("backend.name", "cpu", f"{key}: true")
    for config in ("fsdp_config.", "fsdp_config.fsdp_"):
        if t.flag(f"{config}activation_checkpointing"):
            t.left["gradient_checkpointing"] = True
            t.mapped.append(f"{config}activation_checkpointing: true: as gradient_checkpointing")


def half_precision(t: Translation, old: str) -> None:
    """Translate float16, which auto selects on GPUs without bf16; CPUs do not use it."""
    t.put("model.dtype", "auto", old, "float16 on a GPU without bf16, otherwise bfloat16")


def _other_than(name: str) -> str:
    """Why a value of this key of ours is not carried over, and what the run has in its place."""
    default = TrainConfig.model_fields[name].default
    supported = _list(choices(TrainConfig, name))
    return f"supported are {supported}: train.{name} is {default} unless you set it"


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))
