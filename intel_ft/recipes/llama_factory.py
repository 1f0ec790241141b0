"""LLaMA-Factory's YAML in our terms; called from recipes.translate.

Keys and defaults: hiyouga/LLaMA-Factory, src/llamafactory/hparams (model_args, data_args,
finetuning_args; the rest are transformers.TrainingArguments); https://llamafactory.readthedocs.io/en/latest/advanced/arguments.html
"""

from intel_ft.errors import UserError
from intel_ft.recipes import llama_factory_data, schedule, values
from intel_ft.recipes.translation import Translation

NAME = "LLaMA-Factory"

NEEDLESS = {
    "overwrite_cache": "tokens are made afresh each time, never served stale",
    "tokenized_path": "tokens are made afresh in seconds, never served stale",
    "preprocessing_*": "the tokenizer uses all cores",
    "cache_dir": "the Hub's own HF_HOME says it",
    "use_fast_tokenizer": "always",
    "flash_attn": "attention inside packed segments is built in",
    "enable_liger_kernel": "the loss is chunked and fused here as well",
    "use_unsloth": "decoder layers are compiled kernels here as well, where they can be",
    "use_unsloth_gc": "checkpoints are of whole decoder layers",
    "use_reentrant_gc": "checkpoints are of whole decoder layers, non-reentrant",
    "ignore_pad_token_for_loss": "nothing is padded",
    "plot_loss": "metrics.jsonl and TensorBoard have it",
    "upcast_layernorm": "norms are computed in float32",
    "upcast_lmhead_output": "the loss is computed in float32",
    "quantization_method": "the 4-bit base is made as it is loaded",
    "quantization_type": "NF4 is the 4-bit type here",
    "double_quantization": "a detail of the 4-bit base's scales",
    "quantization_device_map": "each rank has the whole model",
    "ray_*": "the launcher says it",
    "media_dir": "text only",
    "image_*": "text only",
    "video_*": "text only",
    "print_param_status": "the counts are printed at start",
    "hf_hub_token": "log in with `hf auth login`",
    "include_effective_tokens_per_second": "metrics.jsonl has it each step",
    "compute_accuracy": "`intel-ft eval` measures loss and exact answers",
    "predict_with_generate": "`intel-ft eval --generate N` does it",
    "infer_*": "generation is `intel-ft generate`",
    "pissa_convert": "the saved adapter is a plain LoRA's",
}

UNSUPPORTED = {
    "adapter_name_or_path": "training starts from the base, not from another adapter",
    "adapter_folder": "training starts from the base, not from another adapter",
    "add_tokens": "new tokens are not added: make a model folder that has them",
    "add_special_tokens": "new tokens are not added: make a model folder that has them",
    "new_special_tokens_config": "new tokens are not added: make a model folder that has them",
    "resize_vocab": "embeddings are not resized",
    "rope_scaling": "change config.json in a copy of the model's folder",
    "shift_attn": "S2-Attn is not available",
    "mixture_of_depths": "mixture-of-depths is not available",
    "train_from_scratch": "training starts from the base's weights",
    "mask_history": "every answer of a conversation is learnt",
    "streaming": "data is read whole; tokens of millions of rows fit in memory",
    "mix_strategy": "one source is read: join them into one file",
    "interleave_probs": "one source is read: join them into one file",
    "eval_on_each_dataset": "one source is read: join them into one file",
    "freeze_trainable_*": "freeze tuning is not available",
    "freeze_extra_modules": "freeze tuning is not available",
    "use_galore": "GaLore is not available",
    "galore_*": "GaLore is not available",
    "use_apollo": "APOLLO is not available",
    "apollo_*": "APOLLO is not available",
    "use_badam": "BAdam is not available",
    "badam_*": "BAdam is not available",
    "use_adam_mini": "Adam-mini is not available",
    "use_muon": "Muon is not available",
    "use_llama_pro": "LLaMA Pro is not available",
    "use_dft_loss": "the loss is cross-entropy",
    "loraplus_lr_embedding": "embeddings have no adapter",
    "pissa_iter": "PiSSA is by a randomized method of 8 power iterations here",
    "disable_shuffling": "each epoch is shuffled by train.seed",
    "early_stopping_steps": "it needs data.eval or data.eval_fraction",
    "use_swanlab": "SwanLab is no tracker here",
    "swanlab_*": "SwanLab is no tracker here",
    "enable_thinking": "set in the tokenizer's chat template",
    "tool_format": "tool calls are not a format here",
    "split_special_tokens": "control tokens in users' words are always split here",
}

_TEMPLATES = {"llama2": "llama2", "alpaca": "alpaca", "chatml": "chatml", "empty": "none"}


def translate(t: Translation, devices: int) -> None:
    """Take every key of a LLaMA-Factory file. Raises UserError for one that is no fine-tuning."""
    if (stage := t.take("stage")) not in (None, "sft"):
        raise UserError(f"{t.origin}: stage: {stage}: only supervised fine-tuning is done here")
    if stage:
        t.meaningless.append("stage: sft: it is what train does")
    t.move("model_name_or_path", "model.name_or_path")
    t.move("model_revision", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    values.machine(t, ("bf16", "pure_bf16"))
    _method(t)
    _data(t)
    for old, new, change, default in (
        ("num_train_epochs", "train.epochs", values.number, 3.0),
        ("learning_rate", "train.learning_rate", values.number, 5e-5),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("lr_scheduler_type", "train.scheduler", values.scheduler, "linear"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.whole, 500),
    ):
        t.convert(old, new, change, default)
    max_steps(t)
    schedule.batch(t, "per_device_train_batch_size", 8, devices, ("packing", "neat_packing"))
    values.optimizer(t, "optim", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t)
    schedule.checkpoints(t, 500)
    if t.flag("disable_gradient_checkpointing"):
        t.put("train.activation_checkpointing", False, "disable_gradient_checkpointing")
        t.unsupported({"gradient_checkpointing": "disable_gradient_checkpointing was taken"})
    else:
        t.convert("gradient_checkpointing", "train.activation_checkpointing", bool, True)
    if t.got("data.eval_fraction") or t.got("data.eval"):
        t.convert("early_stopping_steps", "train.early_stopping", values.whole)
    values.report_to(t)
    t.move("output_dir", "output.directory")
    t.needless(NEEDLESS | values.SHARED_NEEDLESS)
    t.unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)


def max_steps(t: Translation) -> None:
    """TrainingArguments.max_steps, where -1 stands for as many as the epochs have."""
    if t.left.get("max_steps") in (-1, 0):
        t.off.append("max_steps")
        del t.left["max_steps"]
    t.convert("max_steps", "train.max_steps", values.whole)


def _method(t: Translation) -> None:
    kind, bits = t.take("finetuning_type") or "lora", t.take("quantization_bit")
    if kind not in ("lora", "full"):
        raise UserError(f"{t.origin}: finetuning_type: {kind}: known here are lora and full")
    if kind == "full":
        values.method(t, "full", "finetuning_type: full")
        t.needless({"lora_*": "all weights are trained", "quantization_bit": "weights are trained"})
        return
    if bits == 4:
        values.method(t, "qlora", "quantization_bit: 4")
    else:
        values.method(t, "lora", f"finetuning_type: {kind}")
    if bits == 8:
        values.int8_base(t, "quantization_bit: 8")
    elif bits not in (None, 4):
        t.cannot("quantization_bit", bits, "4 and 8 can be had")
    rank = t.convert("lora_rank", "method.r", values.whole, 8)
    t.convert("lora_alpha", "method.alpha", values.number, 2.0 * (rank or 8))
    t.convert("lora_dropout", "method.dropout", values.number, 0.0)
    t.convert("lora_target", "method.target_modules", values.modules, "all-linear")
    t.move("use_dora", "method.use_dora")
    t.move("use_rslora", "method.use_rslora")
    if t.flag("pissa_init"):
        t.left["pissa_init"] = "pissa"
        values.init_weights(t, "pissa_init")
    for old, key, change in (
        ("additional_target", "method.modules_to_save", values.modules),
        ("loraplus_lr_ratio", "method.lora_plus_ratio", values.number),
    ):
        if (value := t.read(old, change)) is not None:
            values.field_or_cannot(t, old, key, value, "not in this version")


def _data(t: Translation) -> None:
    t.convert("cutoff_len", "data.max_length", values.whole, 2048)
    t.put("data.on_long", "truncate", f"{NAME} cuts at cutoff_len")
    llama_factory_data.sources(t)
    value = t.take("template")
    template = None if value is None else str(value)
    if template in _TEMPLATES:
        t.put("data.template", _TEMPLATES[template], f"template: {template}")
    elif template == "default":
        t.cannot("template", template, "data.template has llama2, alpaca, dolly, chatml, none")
    elif template is not None:
        t.put("data.template", "auto", f"template: {template}", values.OWN_TEMPLATE)
    if (system := t.take("default_system")) is not None:
        t.put("data.system_prompt", str(system), "default_system")
    if t.flag("train_on_prompt"):
        t.put("data.loss_on", "all", "train_on_prompt: true")
    t.convert("val_size", "data.eval_fraction", values.share)
