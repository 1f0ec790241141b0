"""TRL's and Transformers' arguments in our terms; called from recipes.translate.

What TRL's own command line takes as YAML (`trl sft --config`): ScriptArguments, SFTConfig and
ModelConfig in one file, https://huggingface.co/docs/trl/clis; or a set of objects saved as JSON or
YAML, each under a name of its own: TrainingArguments, peft's LoraConfig, BitsAndBytesConfig.
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
"""Names that a set gives to its objects, and what their keys are prefixed with here."""

NEEDLESS = {
    "peft.bias": "biases are not trained",
    "peft.task_type": "causal language modelling is what is done",
    "peft.peft_type": "LoRA is what is meant",
    "peft.inference_mode": "training is what is meant",
    "peft.fan_in_fan_out": "told from the layer's class",
    "peft.base_model_name_or_path": "see model.name_or_path",
    "peft.auto_mapping": "peft's own record",
    "peft.peft_version": "peft's own record",
    "lora_task_type": "causal language modelling is what is done",
    "bnb.bnb_4bit_quant_type": "NF4 is the 4-bit type here",
    "bnb.bnb_4bit_use_double_quant": "a detail of the 4-bit base's scales",
    "bnb.bnb_4bit_compute_dtype": "products are in model.dtype",
    "bnb.*": "bitsandbytes' own detail",
    "bnb_4bit_*": "NF4, with products in model.dtype, is the 4-bit base here",
    "use_bnb_nested_quant": "a detail of the 4-bit base's scales",
    "packing_strategy": "rows are always packed, and no example attends to another",
    "eval_packing": "rows are always packed, and no example attends to another",
    "padding_free": "nothing is padded",
    "pad_to_multiple_of": "nothing is padded",
    "pad_token": "nothing is padded",
    "dataset_num_proc": "the tokenizer uses all cores",
    "dataset_batch_size": "the tokenizer uses all cores",
    "shuffle_dataset": "each epoch is shuffled by train.seed",
    "attn_implementation": "attention inside packed segments is built in",
    "project": "trackers' own environment variables say it",
    "trackio_*": "trackers' own environment variables say it",
    "log_*": "messages go to stderr",
    "logging_strategy": "train.logging_steps is in steps",
    "logging_nan_inf_filter": "a loss that is not a number ends the run",
    "metric_for_best_model": "the loss on data.eval is what is compared",
    "greater_is_better": "the loss on data.eval is what is compared",
    "prediction_loss_only": "evaluation keeps the loss only",
    "bf16_full_eval": "evaluation is in the precision of training",
    "average_tokens_across_devices": "the loss is always over the step's tokens, on any ranks",
    "full_determinism": "the same seed gives the same steps",
    "save_on_each_node": "the first rank writes the run's folder",
    "save_only_model": "a checkpoint is always enough to go on from",
    "eval_do_concat_batches": "evaluation keeps a sum, no logits",
    "train_sampling_strategy": "rows are packed: nothing is padded",
    "gradient_checkpointing_kwargs*": "checkpoints are of whole decoder layers, non-reentrant",
    "dataset_streaming": "data is read whole",
    "accelerator_config*": "ranks are what the launcher starts",
    "parallelism_config*": "ranks are what the launcher starts",
    "batch_eval_metrics": "evaluation keeps a sum, no logits",
    "eval_use_gather_object": "evaluation keeps a sum, no logits",
    "include_for_metrics": "evaluation keeps the loss only",
    "label_names": "the labels are the tokens",
    "do_predict": "say `intel-ft generate`",
    "debug": "say `intel-ft --debug`",
    "enable_jit_checkpoint": "a SIGTERM always saves after the step",
    "ignore_data_skip": "a resumed run goes on at its place in the data",
    "restore_callback_states_from_checkpoint": "a resumed run goes on as it was",
    "ignore_bias_buffers": "ranks exchange gradients once a step; see backend.collective",
    "liger_kernel_config*": "the loss is chunked and fused here as well",
    "torch_empty_cache_steps": "PyTorch's cache of memory is left to itself",
}

UNSUPPORTED = {
    "peft.loftq_config*": "LoftQ asserts CUDA in peft",
    "peft.*": "this detail of peft's LoRA is not available",
    "use_dora": "the LoraConfig was taken",
    "use_rslora": "the LoraConfig was taken",
    "router_aux_loss_coef": "the loss is cross-entropy",
    "lora_target_parameters": "adapters are on linear layers",
    "lora_*": "the LoraConfig was taken",
    "dataset_kwargs*": "not available",
    "model_init_kwargs*": "not available",
    "chat_template_path": "put it into the model folder's tokenizer and say template: tokenizer",
    "eos_token": "tokens are those of the model's folder: change them there",
    "truncation_mode": "the end is cut, but for the answer's own",
    "loss_type": "the loss is cross-entropy",
    "activation_offloading": "activations stay where they are: see train.activation_checkpointing",
    "eval_on_start": "evaluation is each train.eval_steps",
    "eval_delay": "evaluation is each train.eval_steps",
}


_SFT = (
    *("dataset_name", "dataset_text_field", "max_length", "max_seq_length", "packing"),
    *("completion_only_loss", "assistant_only_loss"),
)
"""What only TRL's SFTConfig and its command line have; the Trainer's defaults are others."""


def regroup(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys without the names of the objects they came in; a key given twice keeps the name.

    Lists of target modules and the like stay; `GROUPS` says which names are known.
    """
    result: dict[str, Any] = {}
    for key, value in flat.items():
        group, dot, rest = key.partition(".")
        new = GROUPS[group] + rest if dot and group in GROUPS else key
        result[key if new in result else new] = value
    return result


def translate(t: Translation, devices: int) -> None:
    """Take every key of a set of arguments. Raises UserError for other training than SFT."""
    sft = any(key.startswith("sft_config.") for key in t.left)
    t.left = regroup(t.left)
    sft = sft or any(key in t.left for key in _SFT)
    for key in ("beta", "reward_model_path", "num_generations", "loss_weights"):
        if t.take(key) is not None:
            raise UserError(f"{t.origin}: {key}: only supervised fine-tuning is done here")
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
        ("logging_steps", "train.logging_steps", values.whole, 10 if sft else 500),
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
    t.needless(NEEDLESS | values.SHARED_NEEDLESS)
    t.unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)


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
        t.needless({"lora_*": "without use_peft all weights are trained"})
        return
    values.method(t, "qlora" if four else "lora", f"{four[0]}: true" if four else "peft")
    if eight:
        values.int8_base(t, f"{eight[0]}: true")
    if any(key.startswith("peft.") for key in t.left):  # LoraConfig's own names and defaults
        names = ("peft.r", "peft.lora_alpha", "peft.lora_dropout", "peft.target_modules")
        defaults: tuple[Any, ...] = (8, 8.0, 0.0)
        rest = ("peft.use_rslora", "peft.use_dora", "peft.modules_to_save")
    else:  # trl.ModelConfig's
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        defaults = (16, 32.0, 0.05)
        rest = ("use_rslora", "use_dora", "lora_modules_to_save")
    t.convert(names[0], "method.r", values.whole, defaults[0])
    t.convert(names[1], "method.alpha", values.number, defaults[1])
    t.convert(names[2], "method.dropout", values.number, defaults[2])
    t.convert(names[3], "method.target_modules", values.modules)
    if "target_modules" not in t.config["method"]:
        t.impossible.append(
            f"{names[3]} is not given: peft chooses by model, here it is all-linear"
        )
    t.move(rest[0], "method.use_rslora")
    t.move(rest[1], "method.use_dora")
    if (value := t.take(rest[2])) is not None:
        values.field_or_cannot(t, rest[2], "method.modules_to_save", value, "not in this version")
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
        t.cannot("dataset_text_field", field, "rename the column to text")
    if is_off(t.left.get("max_length")) and "max_seq_length" in t.left:
        t.convert("max_seq_length", "data.max_length", values.whole)
    else:
        t.convert("max_length", "data.max_length", values.whole, 1024)
        t.unsupported({"max_seq_length": "max_length was taken"})
    t.put("data.on_long", "truncate", f"{NAME} cuts at max_length")
    _loss(t, text=field is not None)


def _evaluation(t: Translation) -> None:
    """`trl sft` evaluates on another split of the same dataset; a set of objects names none."""
    split = t.take("dataset_test_split")
    if not schedule.evaluates(t):
        if split is not None:
            t.meaningless.append(f"dataset_test_split: {split}: eval_strategy is no")
    elif (source := t.got("data.train")) is None:
        if split is not None:
            t.cannot("dataset_test_split", split, "name data.eval as well")
    else:
        old = f"dataset_test_split: {split}" if split else f"{NAME}'s default"
        t.put("data.eval", source, old, "a split of the same dataset")
        t.put("data.eval_split", split or "test", old)


def _loss(t: Translation, text: bool) -> None:
    """Which tokens are learnt. `text`: the data is known to be ready-made text."""
    whole = str(t.left.get("completion_only_loss")).lower() == "false"
    masks = [key for key in ("completion_only_loss", "assistant_only_loss") if t.flag(key)]
    if masks:
        t.put("data.loss_on", "completion", f"{' and '.join(masks)}: true")
    elif whole:
        t.put("data.loss_on", "all", "completion_only_loss: false")
    elif text:
        t.put("data.loss_on", "all", "dataset_text_field", "TRL learns all tokens of text")
    else:
        t.impossible.append(
            "completion_only_loss is not given: TRL then learns the completion alone of prompt and"
            " completion, and all tokens of messages and text; here it is the completion: set"
            " data.loss_on to all for messages"
        )
