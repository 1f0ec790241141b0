"""The keys of TRL and Transformers: groups, those not needed, unsupported, or of other trainers."""

from typing import Any

from intel_ft.recipes import values

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
    "peft.task_type": "method.name determines the task",
    "peft.peft_type": "the adapter is always LoRA",
    "peft.inference_mode": "the adapter is always trained",
    "peft.fan_in_fan_out": "the layer's class determines it",
    "peft.base_model_name_or_path": "model.name_or_path sets the base",
    "peft.auto_mapping": "peft only keeps it for its own records",
    "peft.peft_version": "peft only keeps it for its own records",
    "lora_task_type": "method.name determines the task",
    "bnb.bnb_4bit_use_double_quant": "it only concerns the scales of the 4-bit base",
    "bnb.bnb_4bit_compute_dtype": "model.dtype sets the precision of matmuls",
    "bnb.*": "it is an implementation detail of bitsandbytes",
    "bnb_4bit_*": "the 4-bit base is always NF4, with matmuls in model.dtype",
    "use_bnb_nested_quant": "it only concerns the scales of the 4-bit base",
    "env.*": "set the environment's variables yourself",
    "gradient_checkpointing_use_reentrant": "train.activation_checkpointing is non-reentrant",
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
    "metric_for_best_model": "train.best_metric selects the best adapter",
    "greater_is_better": "train.best_metric selects the best adapter",
    "prediction_loss_only": "evaluation only keeps the loss",
    "bf16_full_eval": "evaluation uses the precision of training",
    "average_tokens_across_devices": "the loss is always averaged over the tokens of all ranks",
    "full_determinism": "the same seed always gives the same steps",
    "save_on_each_node": "the first rank writes the run's folder",
    "eval_do_concat_batches": "evaluation keeps only a sum, no logits",
    "gradient_checkpointing_kwargs*": "train.activation_checkpointing recomputes whole decoder"
    " layers and is non-reentrant",
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
    "peft.trainable_token_indices*": "only new tokens are trained alone: see model.add_tokens",
    "peft.*": "this option of peft's LoRA is not supported",
    "use_dora": "the LoraConfig takes precedence",
    "use_rslora": "the LoraConfig takes precedence",
    "router_aux_loss_coef": "train.router_aux_loss=true takes that of the model's config",
    "lora_target_parameters": "name the experts in method.target_modules",
    "lora_*": "the LoraConfig takes precedence",
    "dataset_kwargs*": "these arguments are not supported",
    "model_init_kwargs*": "these arguments are not supported",
    "chat_template_path": values.TEMPLATE_REMEDY,
    "chat_template": values.TEMPLATE_REMEDY,
    "eos_token": "special tokens come from the model folder: change them there",
    "truncation_mode": "the end of an example is cut, but its EOS is kept",
    "loss_type": "the loss is always cross-entropy",
    "eval_on_start": "evaluation is every train.eval_steps",
    "eval_delay": "evaluation is every train.eval_steps",
}

SFT = (
    *("dataset_name", "dataset_text_field", "max_length", "max_seq_length", "packing"),
    *("completion_only_loss", "assistant_only_loss", "dataset_config", "dataset_streaming"),
    *("dataset_train_split", "dataset_test_split", "model_name_or_path", "model_revision"),
    *("test_split_size", "datasets[0].path"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "padding_free"),
    *("lora_modules_to_save", "lora_task_type", "use_bnb_nested_quant", "packing_strategy"),
)
"""Keys that only TRL's command line has (SFTConfig, ScriptArguments, ModelConfig), without the
names of objects before them; the Trainer's defaults differ."""

SFT_LOSSES = ("nll", "chunked_nll", "dft")

WORDS = (
    *("dpo", "grpo", "kto", "orpo", "cpo", "simpo", "ppo", "rloo", "xpo", "gkd", "bco", "prm"),
    *("reward", "rm", "preference", "ultrafeedback"),
)
"""Words in names of files that are usually not supervised fine-tuning."""

_PREFERENCE = (
    *("beta", "label_smoothing", "loss_weights", "reference_free", "rpo_alpha", "ld_alpha"),
    *("precompute_ref_*", "sync_ref_model", "ref_model_*", "force_use_ref_model"),
    *("f_divergence_type", "f_alpha_divergence_coef", "discopop_tau", "use_weighting"),
    *("generate_during_eval", "ref_adapter_name", "model_adapter_name", "max_target_length"),
    *("desirable_weight", "undesirable_weight", "cpo_alpha", "simpo_gamma", "tpo_alpha"),
    *("tpo_l_gamma", "prompt_sample_size", "min_density_ratio", "max_density_ratio"),
    *("max_prompt_length", "disable_dropout", "is_encoder_decoder", "dataset_mode"),
)
"""Keys of DPO, KTO, ORPO, CPO and BCO that recipes.preferences does not take."""

_OTHER_TRAINERS = {
    "reinforcement learning (GRPO, RLOO, PPO, online DPO)": (
        *("num_generations*", "num_iterations", "steps_per_generation", "generation_*"),
        *("max_completion_length", "use_vllm", "vllm_*", "epsilon", "epsilon_high", "delta"),
        *("reward_funcs", "reward_weights", "reward_model*", "reward_clip_range", "scale_rewards"),
        *("importance_sampling_level", "mask_truncated_completions", "top_entropy_quantile"),
        *("log_completions*", "num_completions_to_print", "missing_eos_penalty", "judge"),
        *("mixture_coef", "rloo_k", "num_ppo_epochs", "num_mini_batches", "total_episodes"),
        *("sft_model_path", "kl_coef", "kl_estimator", "cliprange*", "vf_coef", "whiten_rewards"),
        *("response_length", "stop_token*", "local_rollout_forward_batch_size", "gamma", "lam"),
        *("num_sample_generations", "use_transformers_paged", "cast_lm_head_to_fp32"),
        *("ds3_gather_for_generation", "normalize_advantages", "token_budget", "max_staleness"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"),
        *("grpo_config.*", "rloo_config.*", "ppo_config.*", "beta1", "beta2"),
    ),
    "process reward modelling": (*("step_separator", "train_on_last_step_only", "prm_config.*"),),
    "distillation with a teacher (GKD, GOLD)": (
        *("teacher_*", "lmbda", "seq_kd", "uld_*", "use_uld_loss", "distillation_*"),
        *("use_teacher_server", "loss_top_k", "loss_add_tail", "gkd_config.*"),
    ),
}

NOT_SFT = {
    key: f"a key of {kind}: only supervised fine-tuning and preference losses are supported"
    for kind, keys in _OTHER_TRAINERS.items()
    for key in keys
} | dict.fromkeys(_PREFERENCE, "this option of preference training is not supported")
"""Keys that none of TRL's SFTConfig, ModelConfig and ScriptArguments has, with what they are of."""


def regroup(flat: dict[str, Any]) -> dict[str, Any]:
    """Strip the names of the objects (see GROUPS) from the keys.

    A key that would then occur twice keeps the object's name. A dataset_mixture is that of the
    alignment handbook, whose datasets have other names for path and name.
    """
    result: dict[str, Any] = {}
    for key, value in flat.items():
        if key.startswith("dataset_mixture."):
            place, _, name = key.removeprefix("dataset_mixture.").rpartition(".")
            own = {"id": "path", "config": "name"}.get(name, name) if place else name
            result[f"{place}.{own}".lstrip(".")] = value
            continue
        group, dot, rest = key.partition(".")
        new = GROUPS[group] + rest if dot and group in GROUPS else key
        result[key if new in result else new] = value
    return result
