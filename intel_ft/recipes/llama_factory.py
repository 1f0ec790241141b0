"""Translates LLaMA-Factory's YAML.

Keys and defaults: hiyouga/LLaMA-Factory, src/llamafactory/hparams (model_args, data_args,
finetuning_args; the rest are transformers.TrainingArguments); https://llamafactory.readthedocs.io/en/latest/advanced/arguments.html
"""

import re
from pathlib import Path

from intel_ft.config_text import parse_yaml, read_text
from intel_ft.errors import UserError
from intel_ft.recipes import corpus, llama_factory_data, preferences, schedule, values
from intel_ft.recipes.recognize import refuse_keys
from intel_ft.recipes.translation import Translation, is_off

NOT_NEEDED = {
    "overwrite_cache": "cached tokens are used again only for the same data and settings",
    "tokenized_path": "data.cache sets where the tokens of large data are kept",
    "preprocessing_*": "the tokenizer uses all cores",
    "cache_dir": "set the Hub's environment variable HF_HOME",
    "use_fast_tokenizer": "a fast tokenizer is always used",
    "flash_attn": "attention within packed rows is built in",
    "enable_liger_kernel": "the loss is always chunked and fused",
    "use_unsloth": "fused kernels are used wherever they apply",
    "use_unsloth_gc": "train.activation_checkpointing recomputes whole decoder layers",
    "use_reentrant_gc": "train.activation_checkpointing is always non-reentrant",
    "ignore_pad_token_for_loss": "there is no padding",
    "plot_loss": "metrics.jsonl and TensorBoard have the loss",
    "upcast_layernorm": "norms are always computed in float32",
    "upcast_lmhead_output": "the loss is always computed in float32",
    "quantization_method": "the base is quantized to 4 bits when it is loaded",
    "double_quantization": "it only concerns the scales of the 4-bit base",
    "quantization_device_map": "each rank has the whole model",
    "ray_*": "the launcher determines the ranks",
    "print_param_status": "the parameter counts are always printed",
    "hf_hub_token": "log in with `hf auth login`",
    "include_effective_tokens_per_second": "metrics.jsonl has it for each step",
    "compute_accuracy": "`intel-ft eval` measures loss and exact answers",
    **dict.fromkeys(
        ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "num_beams", "num_shots"),
        "use `intel-ft generate`",
    ),
    "predict_with_generate": "use `intel-ft eval --generate N`",
    "infer_*": "use `intel-ft generate`",
    "use_v1_kernels": "fused kernels are used wherever they apply",
    "use_kv_cache": "training never uses a KV cache",
    "offload_folder": "weights are memory-mapped",
    "buffer_size": "only streamed data has a buffer",
    "ms_hub_token": "download the data or the model and name its folder",
    "om_hub_token": "download the data or the model and name its folder",
    "eval_num_beams": "use `intel-ft generate`",
    "generation_*": "use `intel-ft generate`",
    "export_*": "use `intel-ft export`",
    "fp8_*": "fp8 is not used",
    "pissa_convert": "the saved adapter is always a plain LoRA adapter",
}

_OTHER = "only supervised fine-tuning, pre-training and preference losses are supported"
_MEDIA = "only text is supported, and this key concerns images, audio or video"
NOT_SFT = {
    **dict.fromkeys(("pref_*", "dpo_*", "kto_*", "ppo_*", "simpo_gamma", "reward_model*"), _OTHER),
    **dict.fromkeys(("ref_model*", "bco_weight", "ld_alpha"), _OTHER),
    **dict.fromkeys(("image_*", "video_*", "audio_*", "media_dir", "crop_to_patches"), _MEDIA),
    **dict.fromkeys(("freeze_vision_tower", "freeze_multi_modal_projector"), _MEDIA),
    **dict.fromkeys(("freeze_language_model", "use_audio_in_video"), _MEDIA),
    "train_mm_proj_only": _MEDIA,
    "export_dir": "this file merges a model: use `intel-ft merge` or `intel-ft export`",
    "task": "this file evaluates a model: use `intel-ft eval`",
}
"""Keys of files that train something else than a language model of text on examples."""

_VISION = (
    r"(^|_)(vl|omni|llava|mllama|pixtral|paligemma|intern_?vl|minicpm_[vo]|glm4[\d_]*v|qwen2_audio|"
    r"yi_vl|mossvl|ocr|gemma3n|kimi_vl|video)(\d|_|$)"
)
"""Names of templates of models that see images or hear."""

UNSUPPORTED = {
    "adapter_folder": "give the adapter's own folder as model.adapter",
    "create_new_adapter": "it requires adapter_name_or_path",
    "resize_vocab": "embeddings only grow by model.add_tokens",
    "freeze_original_embeddings": "it requires new tokens",
    "rope_scaling": "edit config.json in a copy of the model folder",
    "shift_attn": "S2-Attn is not supported",
    "mixture_of_depths": "mixture-of-depths is not supported",
    "train_from_scratch": "training always starts from the base's weights",
    "eval_on_each_dataset": "only one dataset is evaluated: join them into one file",
    "freeze_trainable_*": "freeze tuning is not supported",
    "freeze_extra_modules": "freeze tuning is not supported",
    "use_galore": "GaLore is not supported",
    "galore_*": "GaLore is not supported",
    "use_apollo": "APOLLO is not supported",
    "apollo_*": "APOLLO is not supported",
    "use_badam": "BAdam is not supported",
    "badam_*": "BAdam is not supported",
    "use_adam_mini": "Adam-mini is not supported",
    "use_muon": "Muon is not supported",
    "use_llama_pro": "LLaMA Pro is not supported",
    "use_dft_loss": "the loss is always cross-entropy",
    "use_asft_loss": "the loss is always cross-entropy",
    "use_eaft_loss": "the loss is always cross-entropy",
    "asft_*": "the loss is always cross-entropy",
    "eaft_*": "the loss is always cross-entropy",
    "moe_aux_loss_coef": "train.router_aux_loss=true takes the coefficient of the model's config",
    "fp8": "fp8 is not supported: see model.base_dtype",
    "use_mca": "Megatron is not supported",
    **dict.fromkeys(("use_kt", "cpu_infer", "chunk_size"), "KTransformers is not supported"),
    "kt_*": "KTransformers is not supported",
    "init_special_tokens": "embeddings of new tokens start as the mean of the others",
    "loraplus_lr_embedding": "embeddings do not get an adapter",
    "pissa_iter": "PiSSA always uses a randomized method with 8 power iterations",
    "disable_shuffling": "each epoch is shuffled with train.seed",
    "early_stopping_steps": "it requires data.eval or data.eval_fraction",
    "use_swanlab": "the tracker SwanLab is not supported",
    "swanlab_*": "the tracker SwanLab is not supported",
    "enable_thinking": "set it in the tokenizer's chat template",
    "tool_format": "the tokenizer's chat template writes tools and calls",
    "split_special_tokens": "control tokens in users' words always become ordinary text",
}

_OF_A_NEW_ADAPTER = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_dora", "use_rslora"),
    *("pissa_init", "additional_target"),
)
"""Keys that LLaMA-Factory does not read where it trains an adapter further."""

_OWN_TEMPLATE = (
    f"{values.TOKENIZER_TEMPLATE}; LLaMA-Factory's own of this name may have another default system"
    " prompt, or other marks where an answer has no thinking"
)
_TEMPLATES = {"llama2": "llama2", "alpaca": "alpaca", "chatml": "chatml", "empty": "none"}


def translate(t: Translation, devices: int) -> None:
    """Translate every key of a LLaMA-Factory file; UserError if it is not fine-tuning."""
    preferences.llama_factory(t)
    _refuse_other_work(t)
    if (stage := t.take("stage")) not in (None, "sft", "pt"):
        raise UserError(f"{t.origin}: stage: {stage}: {_OTHER}")
    if stage == "sft":
        t.not_needed.append("stage: sft: `intel-ft train` always does it")
    t.move("model_name_or_path", "model.name_or_path")
    t.move("model_revision", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    values.machine(t, ("bf16", "pure_bf16"))
    _method(t)
    _tokens(t)
    _data(t, pretraining=stage == "pt")
    values.no_clipping(t)
    for old, new, change, default in (
        ("num_train_epochs", "train.epochs", values.number, 3.0),
        ("learning_rate", "train.learning_rate", values.number, 5e-5),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("lr_scheduler_type", "train.scheduler", values.scheduler, "linear"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.positive_int, 500),
    ):
        t.convert(old, new, change, default)
    schedule.max_steps(t)
    schedule.batch(t, "per_device_train_batch_size", 8, devices, ("packing", "neat_packing"))
    values.optimizer(t, "optim", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t)
    schedule.checkpoints(t, 500)
    if t.flag("disable_gradient_checkpointing"):
        t.put("train.activation_checkpointing", False, "disable_gradient_checkpointing")
        t.take_unsupported(
            {"gradient_checkpointing": "disable_gradient_checkpointing takes precedence"}
        )
    else:
        t.convert("gradient_checkpointing", "train.activation_checkpointing", bool, True)
    if t.value_of("data.eval_fraction") or t.value_of("data.eval"):
        t.convert("early_stopping_steps", "train.early_stopping", values.positive_int)
    values.report_to(t)
    t.move("output_dir", "output.directory")
    corpus.streaming(t, "streaming", "buffer_size", 16384)
    values.four_bit_type(t, "quantization_type")
    t.take_not_needed(NOT_NEEDED | values.SHARED_NOT_NEEDED)
    t.take_unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)
    preferences.finish(t)


def _refuse_other_work(t: Translation) -> None:
    """UserError for a file that does not train, or not on text alone."""
    refuse_keys(t, NOT_SFT)
    template = str(t.left.get("template") or "")
    if re.search(_VISION, template):
        raise UserError(f"{t.origin}: template: {template}: {_MEDIA}")
    trains = ("dataset", "do_train", "tokenized_path", "stage", "learning_rate", "output_dir")
    answers = [key for key in ("infer_backend", "adapter_name_or_path") if t.left.get(key)]
    if answers and not any(t.left.get(key) for key in trains):
        raise UserError(f"{t.origin}: {answers[0]}, and no dataset: use `intel-ft generate`")
    if is_off(t.left.get("do_train", True)) and t.left.get("do_predict"):
        raise UserError(f"{t.origin}: do_predict without do_train: use `intel-ft generate`")


def _method(t: Translation) -> None:
    kind, bits = t.take("finetuning_type") or "lora", t.take("quantization_bit")
    if kind not in ("lora", "full"):
        raise UserError(f"{t.origin}: finetuning_type: {kind}: only lora and full are supported")
    if kind == "full":
        values.method(t, "full", "finetuning_type: full")
        reason = "all weights are trained"
        t.take_not_needed({"lora_*": reason, "quantization_bit": reason})
        t.take_unsupported({"adapter_name_or_path": "LLaMA-Factory applies it to LoRA only"})
        return
    if bits == 4:
        values.method(t, "qlora", "quantization_bit: 4")
    else:
        values.method(t, "lora", f"finetuning_type: {kind}")
    if bits == 8:
        values.int8_base(t, "quantization_bit: 8")
    elif bits not in (None, 4):
        t.cannot_carry("quantization_bit", bits, "only 4 and 8 are supported")
    ratio = t.read("loraplus_lr_ratio", values.number)
    if ratio is not None:
        t.put("method.lora_plus_ratio", ratio, f"loraplus_lr_ratio: {ratio}")
    new = t.flag("create_new_adapter") if t.left.get("adapter_name_or_path") else False
    if new and bits is not None:
        t.not_needed.append(
            "create_new_adapter: true: LLaMA-Factory always trains the adapter of a quantized base"
            " further"
        )
    mode = "merge" if new and bits is None else "continue"
    if values.start_adapter(t, "adapter_name_or_path", mode, _OF_A_NEW_ADAPTER):
        return
    rank = t.convert("lora_rank", "method.r", values.positive_int, 8)
    t.convert("lora_alpha", "method.alpha", values.number, 2.0 * (rank or 8))
    t.convert("lora_dropout", "method.dropout", values.number, 0.0)
    t.convert("lora_target", "method.target_modules", values.modules, "all-linear")
    t.move("use_dora", "method.use_dora")
    t.move("use_rslora", "method.use_rslora")
    if t.flag("pissa_init"):
        t.left["pissa_init"] = "pissa"
        values.init_weights(t, "pissa_init")
    if (saved := t.read("additional_target", values.modules)) is not None:
        t.put("method.modules_to_save", saved, f"additional_target: {saved}")


def _tokens(t: Translation) -> None:
    """New tokens. With LoRA, LLaMA-Factory trains both embeddings as a whole then."""
    _read_described(t)
    for key in ("add_tokens", "add_special_tokens", "new_special_tokens_config"):
        values.new_tokens(t, key)
    if t.value_of("model.add_tokens"):
        t.take_not_needed({"resize_vocab": "the embeddings grow by the new tokens"})
        if t.value_of("method.name") != "full" and not t.value_of("method.modules_to_save"):
            t.not_carried_over.append(
                "additional_target is not set: LLaMA-Factory then trains the embeddings of all"
                " tokens, intel-ft those of the new ones: for all, set method.modules_to_save to"
                " the model's embeddings, such as [embed_tokens, lm_head]"
            )
        else:
            t.take_unsupported({"freeze_original_embeddings": "the embeddings are trained in full"})
        t.take_not_needed({"freeze_original_embeddings": "only the rows of new tokens are trained"})
    if str(t.left.get("init_special_tokens")).startswith(("noise", "vocab_mean")):
        t.take_not_needed({"init_special_tokens": "new rows start as the mean of the others"})


def _read_described(t: Translation) -> None:
    """The tokens of a file that maps each to a description, if it is on this machine."""
    name = t.left.get("new_special_tokens_config")
    if name is None or is_off(name) or not Path(str(name)).is_file():
        t.take_unsupported({"new_special_tokens_config": "add its tokens to model.add_tokens"})
        return
    described = parse_yaml(read_text(Path(str(name))), str(name))
    if not isinstance(described, dict):
        raise UserError(f"{t.origin}: new_special_tokens_config: {name}: expected a mapping")
    t.left["new_special_tokens_config"] = list(described)


def _data(t: Translation, *, pretraining: bool) -> None:
    t.convert("cutoff_len", "data.max_length", values.positive_int, 2048)
    if pretraining:
        llama_factory_data.sources(t, pretraining=True)
        if t.left.get("packing") is None:
            t.left["packing"] = True
            t.mapped.append("stage: pt: as packing: true, its default")
        reason = "documents have no turns"
        names = ("template", "default_system", "train_on_prompt", "mask_history")
        t.take_not_needed(dict.fromkeys(names, reason))
        values.validation_share(t, "val_size")
        return
    values.truncation(t, "cutoff_len")
    t.not_carried_over.append(
        "cutoff_len: LLaMA-Factory shortens a long prompt and keeps the answer; here the end is"
        " cut, and an example whose prompt leaves no room for the answer is dropped: raise"
        " data.max_length if `intel-ft validate` reports dropped examples"
    )
    llama_factory_data.sources(t)
    value = t.take("template")
    template = None if value is None else str(value)
    if template in _TEMPLATES:
        t.put("data.template", _TEMPLATES[template], f"template: {template}")
    elif template == "default":
        t.cannot_carry(
            "template", template, "set data.template to llama2, alpaca, dolly, chatml or none"
        )
    elif template is not None:
        t.put("data.template", "auto", f"template: {template}", _OWN_TEMPLATE)
    if (system := t.take("default_system")) is not None:
        t.put("data.system_prompt", str(system), "default_system")
    if t.flag("train_on_prompt"):
        t.put("data.loss_on", "all", "train_on_prompt: true")
    if t.flag("mask_history"):
        t.put("data.loss_on", "last", "mask_history: true")
    values.validation_share(t, "val_size")
