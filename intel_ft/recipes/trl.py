"""Translates arguments of TRL and Transformers.

Either the YAML of TRL's command line (`trl sft --config`), which has ScriptArguments, SFTConfig and
ModelConfig in one file, https://huggingface.co/docs/trl/clis; or a set of objects saved as JSON or
YAML, each under its own name: TrainingArguments, peft's LoraConfig, BitsAndBytesConfig.
Keys and defaults: https://huggingface.co/docs/trl/sft_trainer (SFTConfig),
https://huggingface.co/docs/transformers/main_classes/trainer (TrainingArguments),
https://huggingface.co/docs/peft/package_reference/lora (LoraConfig).
"""

from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import schedule, values
from intel_ft.recipes.llama_factory import max_steps
from intel_ft.recipes.translation import Translation, is_off

NAME = "TRL / Transformers"

GROUPS = {
    "args": "",
    "training_args": "",
    "training_arguments": "",
    "training_params": "",
    "sft_config": "",
    "script_args": "",
    "model_args": "",
    "model_config": "",
    "peft_config": "peft.",
    "peft_params": "peft.",
    "lora_config": "peft.",
    "bnb_config": "bnb.",
    "quantization_config": "bnb.",
    "quant_config": "bnb.",
}
"""Names of the objects in a set, and the prefix that their keys get here."""

NOT_NEEDED = {
    "peft.bias": "biases are never trained",
    "peft.task_type": "the task is always causal language modelling",
    "peft.peft_type": "the adapter is always LoRA",
    "peft.inference_mode": "the adapter is always trained",
    "peft.fan_in_fan_out": "the layer's class determines it",
    "peft.base_model_name_or_path": "model.name_or_path sets the base",
    "peft.auto_mapping": "peft only keeps it for its own records",
    "peft.peft_version": "peft only keeps it for its own records",
    "lora_task_type": "the task is always causal language modelling",
    "bnb.bnb_4bit_quant_type": "the 4-bit type is always NF4",
    "bnb.bnb_4bit_use_double_quant": "it only concerns the scales of the 4-bit base",
    "bnb.bnb_4bit_compute_dtype": "model.dtype sets the precision of matmuls",
    "bnb.*": "it is an implementation detail of bitsandbytes",
    "bnb_4bit_*": "the 4-bit base is always NF4, with matmuls in model.dtype",
    "use_bnb_nested_quant": "it only concerns the scales of the 4-bit base",
    "packing_strategy": "examples are always packed and never attend to each other",
    "eval_packing": "examples are always packed and never attend to each other",
    "padding_free": "there is no padding",
    "pad_to_multiple_of": "there is no padding",
    "pad_token": "there is no padding",
    "dataset_num_proc": "the tokenizer uses all cores",
    "dataset_batch_size": "the tokenizer uses all cores",
    "shuffle_dataset": "each epoch is shuffled with train.seed",
    "attn_implementation": "attention within packed rows is built in",
    "project": "set the tracker's own environment variables",
    "trackio_*": "set the tracker's own environment variables",
    "log_*": "messages go to stderr",
    "logging_strategy": "train.logging_steps always counts steps",
    "logging_nan_inf_filter": "a run always stops if the loss is not finite",
    "metric_for_best_model": "the validation loss always selects the best adapter",
    "greater_is_better": "the validation loss always selects the best adapter",
    "prediction_loss_only": "evaluation only keeps the loss",
    "bf16_full_eval": "evaluation uses the precision of training",
    "average_tokens_across_devices": "the loss is always averaged over the tokens of all ranks",
    "full_determinism": "the same seed always gives the same steps",
    "save_on_each_node": "the first rank writes the run's folder",
    "save_only_model": "checkpoints always hold everything needed to resume",
    "eval_do_concat_batches": "evaluation keeps only a sum, no logits",
    "train_sampling_strategy": "examples are packed, so there is no padding",
    "gradient_checkpointing_kwargs*": "train.activation_checkpointing recomputes whole decoder"
    " layers and is non-reentrant",
    "dataset_streaming": "the data is read as a whole",
    "accelerator_config*": "the launcher determines the ranks",
    "parallelism_config*": "the launcher determines the ranks",
    "batch_eval_metrics": "evaluation keeps only a sum, no logits",
    "eval_use_gather_object": "evaluation keeps only a sum, no logits",
    "include_for_metrics": "evaluation only keeps the loss",
    "label_names": "the labels are always the tokens",
    "do_predict": "use `intel-ft generate`",
    "debug": "use `intel-ft --debug`",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint after the current step",
    "ignore_data_skip": "a resumed run always continues at its position in the data",
    "restore_callback_states_from_checkpoint": "a resumed run always restores them",
    "ignore_bias_buffers": "ranks exchange gradients once per step; see backend.collective",
    "liger_kernel_config*": "the loss is always chunked and fused",
    "torch_empty_cache_steps": "PyTorch manages its memory cache",
}

UNSUPPORTED = {
    "peft.loftq_config*": "LoftQ is not supported (in peft it requires CUDA)",
    "peft.*": "this option of peft's LoRA is not supported",
    "use_dora": "the LoraConfig takes precedence",
    "use_rslora": "the LoraConfig takes precedence",
    "router_aux_loss_coef": "the loss is always cross-entropy",
    "lora_target_parameters": "only linear layers get an adapter",
    "lora_*": "the LoraConfig takes precedence",
    "dataset_kwargs*": "these arguments are not supported",
    "model_init_kwargs*": "these arguments are not supported",
    "chat_template_path": values.TEMPLATE_REMEDY,
    "eos_token": "special tokens come from the model folder: change them there",
    "truncation_mode": "the end of an example is cut, but its EOS is kept",
    "loss_type": "the loss is always cross-entropy",
    "activation_offloading": "offloading is not supported: see train.activation_checkpointing",
    "eval_on_start": "evaluation is every train.eval_steps",
    "eval_delay": "evaluation is every train.eval_steps",
}


_SFT = (
    *("dataset_name", "dataset_text_field", "max_length", "max_seq_length", "packing"),
    *("completion_only_loss", "assistant_only_loss"),
)
"""Keys that only TRL's SFTConfig and its command line have; the Trainer's defaults differ."""


def regroup(flat: dict[str, Any]) -> dict[str, Any]:
    """Strip the names of the objects (see GROUPS) from the keys.

    A key that would then occur twice keeps the object's name.
    """
    result: dict[str, Any] = {}
    for key, value in flat.items():
        group, dot, rest = key.partition(".")
        new = GROUPS[group] + rest if dot and group in GROUPS else key
        result[key if new in result else new] = value
    return result


def translate(t: Translation, devices: int) -> None:
    """Translate every key of a set of arguments; UserError if it is not supervised training."""
    sft = any(key.startswith("sft_config.") for key in t.left)
    t.left = regroup(t.left)
    sft = sft or any(key in t.left for key in _SFT)
    for key in ("beta", "reward_model_path", "num_generations", "loss_weights"):
        if t.take(key) is not None:
            raise UserError(f"{t.origin}: {key}: only supervised fine-tuning is supported")
    for key in ("model_name_or_path", "model", "model_name"):
        t.move(key, "model.name_or_path")
    t.move("model_revision", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    for key in ("dtype", "torch_dtype"):
        _dtype(t, key)
    values.machine(t)
    _method(t)
    _data(t)
    for old, new, change, default in (
        ("num_train_epochs", "train.epochs", values.number, 3.0),
        ("learning_rate", "train.learning_rate", values.number, 2e-5 if sft else 5e-5),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("lr_scheduler_type", "train.scheduler", values.scheduler, "linear"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.positive_int, 10 if sft else 500),
    ):
        t.convert(old, new, change, default)
    max_steps(t)
    schedule.batch(t, "per_device_train_batch_size", 8, devices, ("packing",))
    values.optimizer(t, "optim", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t)
    schedule.checkpoints(t, 500)
    t.convert("gradient_checkpointing", "train.activation_checkpointing", bool, sft or None)
    values.report_to(t)
    t.move("output_dir", "output.directory")
    t.take_not_needed(NOT_NEEDED | values.SHARED_NOT_NEEDED)
    t.take_unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)


def _dtype(t: Translation, key: str) -> None:
    value = t.take(key)
    name = str(value).removeprefix("torch.")
    if name == "float16":
        values.half_precision(t, f"{key}: {value}")
    elif value is not None:
        t.put("model.dtype", name if name in ("float32", "auto") else "bfloat16", f"{key}: {value}")


def _method(t: Translation) -> None:
    lora = t.flag("use_peft") or any(key.startswith("peft.") for key in t.left)
    four = [key for key in ("load_in_4bit", "bnb.load_in_4bit") if t.flag(key)]
    eight = [key for key in ("load_in_8bit", "bnb.load_in_8bit") if t.flag(key)]
    if not lora and not four and not eight:
        values.method(t, "full", "no peft config and no use_peft")
        t.take_not_needed({"lora_*": "all weights are trained without use_peft"})
        return
    values.method(t, "qlora" if four else "lora", f"{four[0]}: true" if four else "peft")
    if eight:
        values.int8_base(t, f"{eight[0]}: true")
    if any(key.startswith("peft.") for key in t.left):  # names and defaults of peft.LoraConfig
        names = ("peft.r", "peft.lora_alpha", "peft.lora_dropout", "peft.target_modules")
        defaults: tuple[Any, ...] = (8, 8.0, 0.0)
        rest = ("peft.use_rslora", "peft.use_dora", "peft.modules_to_save")
    else:  # those of trl.ModelConfig
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        defaults = (16, 32.0, 0.05)
        rest = ("use_rslora", "use_dora", "lora_modules_to_save")
    t.convert(names[0], "method.r", values.positive_int, defaults[0])
    t.convert(names[1], "method.alpha", values.number, defaults[1])
    t.convert(names[2], "method.dropout", values.number, defaults[2])
    t.convert(names[3], "method.target_modules", values.modules)
    if "target_modules" not in t.config["method"]:
        t.not_carried_over.append(
            f"{names[3]} is not set: peft chooses modules by model, intel-ft uses all-linear"
        )
    t.move(rest[0], "method.use_rslora")
    t.move(rest[1], "method.use_dora")
    if (value := t.take(rest[2])) is not None:
        reason = "not supported in this version"
        values.set_if_field(t, rest[2], "method.modules_to_save", value, reason)
    values.init_weights(t, "peft.init_lora_weights")


def _data(t: Translation) -> None:
    part = t.take("dataset_config")
    for key in ("dataset_name", "train_dataset", "dataset"):
        name = t.take(key)
        if name is not None:
            t.put("data.train", f"{name}:{part}" if part else str(name), f"{key}: {name}")
    t.move("dataset_train_split", "data.split")
    _evaluation(t)
    field = t.take("dataset_text_field")
    if field == "text":
        t.put("data.format", "text", "dataset_text_field: text")
    elif field is not None:
        t.cannot_carry("dataset_text_field", field, "rename this column to text in the data")
    if is_off(t.left.get("max_length")) and "max_seq_length" in t.left:
        t.convert("max_seq_length", "data.max_length", values.positive_int)
    else:
        t.convert("max_length", "data.max_length", values.positive_int, 1024)
        t.take_unsupported({"max_seq_length": "max_length takes precedence"})
    t.put("data.on_long", "truncate", f"{NAME} truncates at max_length")
    _loss(t, text=field is not None)


def _evaluation(t: Translation) -> None:
    """Translate evaluation: `trl sft` uses another split of the dataset, other files none."""
    split = t.take("dataset_test_split")
    if not schedule.evaluates(t):
        if split is not None:
            t.not_needed.append(
                f"dataset_test_split: {split}: not used, because eval_strategy is no"
            )
    elif (source := t.value_of("data.train")) is None:
        if split is not None:
            t.cannot_carry("dataset_test_split", split, "set data.eval as well")
    else:
        old = f"dataset_test_split: {split}" if split else f"{NAME}'s default"
        t.put("data.eval", source, old, "another split of the same dataset")
        t.put("data.eval_split", split or "test", old)


def _loss(t: Translation, text: bool) -> None:
    """Translate the loss mask. text: whether the data is known to be ready-made text."""
    whole = str(t.left.get("completion_only_loss")).lower() == "false"
    masks = [key for key in ("completion_only_loss", "assistant_only_loss") if t.flag(key)]
    if masks:
        t.put("data.loss_on", "completion", f"{' and '.join(masks)}: true")
    elif whole:
        t.put("data.loss_on", "all", "completion_only_loss: false")
    elif text:
        t.put("data.loss_on", "all", "dataset_text_field", "TRL trains on all tokens of text")
    else:
        t.not_carried_over.append(
            "completion_only_loss is not set: TRL then trains only on the completion of prompt and"
            " completion, but on all tokens of messages and text; intel-ft trains on the"
            " completion: for messages, set data.loss_on to all"
        )
