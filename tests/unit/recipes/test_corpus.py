"""Configs written from the keys that other trainers document: none is silently another training.

Each case is a whole config of a trainer with one more key or with other values. It is refused with
the key, or carried with the right value, or the key is listed with a reason.
"""

from typing import Any

import pytest
import yaml

from intel_ft.cli import init
from intel_ft.config_sources import Source
from intel_ft.errors import UserError
from intel_ft.recipes.importer import translate

BASES: dict[str, dict[str, Any]] = {
    "axolotl": {
        "base_model": "org/model-8b",
        "adapter": "lora",
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_linear": True,
        "datasets": [{"path": "org/set", "type": "alpaca"}],
        "val_set_size": 0.05,
        "sequence_len": 2048,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_epochs": 3,
        "optimizer": "adamw_torch_fused",
        "lr_scheduler": "cosine",
        "learning_rate": 0.0002,
        "bf16": "auto",
        "tf32": False,
        "gradient_checkpointing": True,
        "logging_steps": 1,
        "flash_attention": True,
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "output_dir": "./outputs/out",
    },
    "llama_factory": {
        "model_name_or_path": "org/model-8b",
        "trust_remote_code": True,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset": "identity",
        "template": "llama3",
        "cutoff_len": 2048,
        "max_samples": 1000,
        "preprocessing_num_workers": 16,
        "dataloader_num_workers": 4,
        "output_dir": "saves/model/lora/sft",
        "logging_steps": 10,
        "save_steps": 500,
        "plot_loss": True,
        "overwrite_output_dir": True,
        "save_only_model": False,
        "report_to": "none",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "bf16": True,
        "ddp_timeout": 180000000,
        "resume_from_checkpoint": None,
    },
    "trl": {
        "model_name_or_path": "org/model-8b",
        "dataset_name": "org/set",
        "learning_rate": 2.0e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
        "eval_strategy": "no",
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_target_modules": ["q_proj", "v_proj"],
        "output_dir": "out",
    },
}

ONLY_SFT = "only supervised fine-tuning"
ONLY_TEXT = "only text"
NO_OPTION = "this option of preference training"

REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "axolotl": [
        *(({"rl": kind}, "only dpo, ipo, orpo, simpo, kto") for kind in ("grpo", "gdpo", "ebft")),
        ({"rl_beta": 0.1}, ONLY_SFT),
        ({"trl": {"beta": 0.001, "num_generations": 4}}, ONLY_SFT),
        ({"kto_desirable_weight": 0.2}, ONLY_SFT),
        ({"orpo_alpha": 0.1}, ONLY_SFT),
        ({"reward_model": "org/r"}, ONLY_SFT),
        ({"process_reward_model": True}, ONLY_SFT),
        ({"model_type": "AutoModelForTokenClassification", "num_labels": 2}, ONLY_SFT),
        ({"model_type": "AutoModelForSequenceClassification"}, "model_type"),
        ({"kd_trainer": True, "kd_alpha": 0.9}, "distillation"),
        ({"diffusion": {"noise_schedule": "cosine"}}, "causal"),
        ({"processor_type": "AutoProcessor"}, ONLY_TEXT),
        ({"image_size": 512}, ONLY_TEXT),
        ({"image_resize_algorithm": "bilinear"}, ONLY_TEXT),
        ({"model_type": "AutoModelForImageTextToText"}, "model_type"),
        ({"adapter": "llama-adapter"}, "only lora"),
    ],
    "llama_factory": [
        ({"stage": "ppo"}, ONLY_SFT),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "pref_loss: kto_pair"),
        ({"stage": "dpo", "ref_model": "org/ref"}, ONLY_SFT),
        ({"finetuning_type": "oft"}, "only lora and full"),
        ({"finetuning_type": "freeze"}, "only lora and full"),
        ({"pref_beta": 0.1, "pref_loss": "sigmoid"}, ONLY_SFT),
        ({"kto_chosen_weight": 1.0}, ONLY_SFT),
        ({"reward_model": "saves/reward"}, ONLY_SFT),
        ({"ref_model": "org/ref"}, ONLY_SFT),
        ({"image_max_pixels": 262144, "video_max_pixels": 16384}, ONLY_TEXT),
        ({"freeze_vision_tower": True}, ONLY_TEXT),
        ({"media_dir": "data"}, ONLY_TEXT),
        *(
            ({"template": name}, ONLY_TEXT)
            for name in ("qwen2_vl", "qwen3_vl_nothink", "llava", "llava_next_video", "pixtral")
        ),
        *(
            ({"template": name}, ONLY_TEXT)
            for name in ("paligemma", "intern_vl", "minicpm_v", "mllama", "qwen2_omni", "ernie_vl")
        ),
        ({"export_dir": "out", "export_size": 5}, "merge"),
        ({"task": "mmlu_test", "lang": "en"}, "eval"),
        ({"do_train": False, "do_predict": True}, "do_predict"),
        (
            {"model": "org/m", "model_class": "llm", "dist_config": {"name": "fsdp2"}},
            "LLaMA-Factory v1",
        ),
    ],
    "trl": [
        *(({key: 1}, NO_OPTION) for key in ("ld_alpha", "max_prompt_length", "tpo_alpha")),
        *(({key: True}, NO_OPTION) for key in ("sync_ref_model", "reference_free")),
        ({"beta": 0.1, "f_divergence_type": "js_divergence"}, NO_OPTION),
        *(({key: 8}, ONLY_SFT) for key in ("num_generations", "max_completion_length", "epsilon")),
        *(({key: True}, ONLY_SFT) for key in ("use_vllm", "log_completions")),
        ({"vllm_mode": "colocate"}, ONLY_SFT),
        ({"reward_funcs": ["accuracy_reward"]}, ONLY_SFT),
        ({"reward_model_name_or_path": "org/r"}, ONLY_SFT),
        ({"reward_model_path": "org/r", "missing_eos_penalty": 1.0}, ONLY_SFT),
        ({"scale_rewards": "group"}, ONLY_SFT),
        ({"judge": "pair_rm"}, ONLY_SFT),
        ({"num_ppo_epochs": 1, "total_episodes": 10000}, ONLY_SFT),
        ({"sft_model_path": "org/s", "kl_coef": 0.05}, ONLY_SFT),
        ({"rloo_k": 2}, ONLY_SFT),
        ({"step_separator": "\n"}, ONLY_SFT),
        ({"teacher_model_name_or_path": "org/t", "lmbda": 0.5}, ONLY_SFT),
        ({"seq_kd": True}, ONLY_SFT),
        ({"uld_crossentropy_weight": 0.1}, ONLY_SFT),
        ({"temperature": 0.9}, ONLY_SFT),
        ({"lora_task_type": "TOKEN_CLS"}, "only CAUSAL_LM"),
        ({"peft": {"task_type": "SEQ_CLS"}}, "only CAUSAL_LM"),
        ({"peft": {"peft_type": "IA3"}}, "only LORA"),
        ({"loss_type": "hinge"}, "loss_type"),
        ({"loss_type": ["sigmoid", "bco_pair"]}, "loss_type"),
        ({"grpo_config": {"num_iterations": 1}}, ONLY_SFT),
        ({"block_size": 512, "validation_split_percentage": 5}, "run_clm"),
    ],
}

OTHERS: dict[str, dict[str, Any]] = {
    "ms-swift": {"model": "org/m", "tuner_type": "lora", "lora_rank": 8, "output_dir": "o"},
    "ms-swift, older": {
        "model": "org/m",
        "train_type": "full",
        "dataset": ["a#500"],
        "max_steps": 1,
    },
    "ms-swift, plain": {"model": "org/m", "lora_rank": 8, "dataset": ["a/b"], "output_dir": "o"},
    "ms-swift, GRPO": {"rlhf_type": "grpo", "model": "org/m", "output_dir": "o"},
    "LLaMA-Factory v1": {
        "model": "org/m",
        "model_class": "llm",
        "template": "qwen3_nothink",
        "kernel_config": {"name": "auto"},
        "dist_config": {"name": "fsdp2"},
        "train_dataset": "data/v1_sft_demo.yaml",
        "output_dir": "o",
        "micro_batch_size": 1,
        "cutoff_len": 2048,
        "max_steps": 10,
    },
    "LLaMA-Factory v1, DPO": {
        "model": "org/m",
        "peft_config": {"name": "lora", "r": 16},
        "train_dataset": "data/v1_dpo_demo.yaml",
        "output_dir": "o",
        "cutoff_len": 2048,
        "sample_backend": "hf",
    },
    "torchtune": {"model": {"_component_": "torchtune.models.x"}, "output_dir": "o", "epochs": 1},
    "Oumi": {"model": {"model_name": "org/m"}, "training": {"trainer_type": "TRL_SFT"}},
    "LitGPT": {"checkpoint_dir": "c", "out_dir": "o", "precision": "bf16-true", "max_steps": 3},
    "Ludwig": {"model_type": "llm", "base_model": "org/m", "input_features": [{"name": "a"}]},
    "AutoTrain": {"task": "llm-sft", "base_model": "org/m", "project_name": "p"},
    "MLX-LM": {"model": "org/m", "train": True, "iters": 600, "fine_tune_type": "lora"},
    "verl": {"data": {"train_files": "a.parquet"}, "model": {"partial_pretrain": "org/m"}},
    "OpenRLHF": {"pretrain": "org/m", "dataset": "a", "micro_train_batch_size": 2, "max_steps": 1},
    "H2O LLM Studio": {"llm_backbone": "org/m", "output_dir": "o"},
    "unknown": {
        "output_dir": "o",
        "alpha_one": 1,
        "beta_two": 2,
        "gamma_three": 3,
        "delta_four": 4,
    },
    "unknown, base_model": {"base_model": "m", "kind": 1, "steps": 2, "batch": 3, "rate": 4},
    "no trainer": {"hello": "world"},
}

PREFERENCE = {"method.name": "preference", "data.format": "auto", "data.loss_on": "completion"}
TWO_SOURCES = [{"path": "org/a", "split": "train[:9]"}, {"path": "b.jsonl"}]
TEXT_SOURCE = {"format": "text", "on_long": "split"}
TEXT = {"data.format": "text", "data.on_long": "split"}
REWARD = PREFERENCE | {"method.name": "reward"}
BECOMES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "axolotl": [
        (
            {
                "rl": "dpo",
                "rl_beta": 0.2,
                "dpo_label_smoothing": 0.1,
                "datasets": [{"path": "org/pairs", "type": "chatml.argilla"}],
            },
            PREFERENCE
            | {
                "method.loss": "dpo",
                "method.beta": 0.2,
                "method.label_smoothing": 0.1,
                "data.template": "chatml",
                "data.columns": {"chosen": "chosen_response", "rejected": "rejected_response"},
            },
        ),
        (
            {"rl": "kto", "kto_desirable_weight": 0.2, "adapter": "qlora", "load_in_4bit": True},
            PREFERENCE
            | {
                "method.loss": "kto",
                "method.desirable_weight": 0.2,
                "model.base_dtype": "nf4",
            },
        ),
        ({"rl": "orpo", "orpo_alpha": 0.3}, {"method.loss": "orpo", "method.beta": 0.3}),
        (
            {
                "reward_model": True,
                "num_labels": 1,
                "model_type": "AutoModelForSequenceClassification",
                "center_rewards_coefficient": 0.01,
                "datasets": [{"path": "org/pairs", "type": "bradley_terry.chat_template"}],
            },
            REWARD | {"data.train": "org/pairs", "data.columns": {"prompt": "input"}},
        ),
        (
            {"pretraining_dataset": "org/corpus", "datasets": None, "max_steps": 100},
            TEXT | {"data.train": "org/corpus", "data.streaming": False, "train.max_steps": 100},
        ),
        (
            {"pretraining_dataset": {"path": "org/corpus", "name": "en", "text_column": "body"}},
            TEXT | {"data.train": "org/corpus:en", "data.columns": {"text": "body"}},
        ),
        (
            {
                "pretraining_dataset": [TWO_SOURCES[0] | {"type": "pretrain"}, TWO_SOURCES[1]],
                "val_set_size": None,
            },
            {"data.train": [Source(**one, **TEXT_SOURCE) for one in TWO_SOURCES]},
        ),
        (
            {"streaming": True, "excess_length_strategy": "truncate", "max_steps": 9}
            | {"val_set_size": 0},
            {"data.streaming": True, "data.buffer": 10_000},
        ),
        ({"streaming": True, "max_steps": 9}, {"data.streaming": False, "data.on_long": "drop"}),
        ({}, {"method.r": 32, "train.global_batch_size": 8, "train.keep_checkpoints": 4}),
        ({"adapter": "qlora", "load_in_4bit": True}, {"method.name": "qlora"}),
        ({"adapter": None}, {"method.name": "full"}),
        ({"bf16": False, "fp16": False}, {"model.dtype": "float32"}),
        ({"bf16": None, "fp16": None}, {"model.dtype": "float32"}),
        ({"bf16": False, "fp16": True}, {"model.dtype": "auto"}),
        ({"bf16": True}, {"model.dtype": "bfloat16"}),
        ({"bf16": "full"}, {"model.dtype": "bfloat16"}),
        ({"max_grad_norm": 0}, {"train.max_grad_norm": 0}),
        ({"max_grad_norm": 0.3}, {"train.max_grad_norm": 0.3}),
        ({"evals_per_epoch": 1}, {"train.eval_steps": None}),
        ({"evals_per_epoch": 4, "max_steps": 120}, {"train.eval_steps": 10}),
        ({"saves_per_epoch": 2, "max_steps": 120}, {"train.save_steps": 20}),
        ({"eval_steps": 0.1, "max_steps": 120}, {"train.eval_steps": 12}),
        ({"save_steps": 0.5, "max_steps": 120}, {"train.save_steps": 60}),
        ({"save_total_limit": 7}, {"train.keep_checkpoints": 7}),
        ({"optimizer": "adamw_torch_8bit"}, {"train.optimizer": "adamw_torch_fused"}),
        ({"optimizer": "adamw_torch_4bit"}, {"train.optimizer": "adamw_torch_fused"}),
        ({"optimizer": "adamw_bnb_8bit"}, {"train.optimizer": "adamw_torch_fused"}),
        ({"optimizer": "paged_adamw_8bit"}, {"train.optimizer": "paged_adamw_32bit"}),
        (
            {
                "gradient_checkpointing": None,
                "fsdp_config": {"activation_checkpointing": True, "fsdp_version": 2},
            },
            {"train.activation_checkpointing": True},
        ),
        (
            {"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]},
            {"method.target_modules": ["q_proj", "v_proj"]},
        ),
        (
            {"lora_target_linear": None, "lora_target_modules": r"model.layers.[\d]+.mlp.up_proj"},
            {"method.target_modules": r"model.layers.[\d]+.mlp.up_proj"},
        ),
        ({"peft_use_dora": True}, {"method.use_dora": True}),
        ({"peft_use_rslora": True}, {"method.use_rslora": True}),
        ({"loraplus_lr_ratio": 16}, {"method.lora_plus_ratio": 16}),
        ({"lora_modules_to_save": ["lm_head"]}, {"method.modules_to_save": ["lm_head"]}),
        (
            {"lora_model_dir": "earlier"},
            {"model.adapter": "earlier", "model.adapter_mode": "continue", "method.r": 16},
        ),
        ({"tokens": ["<a>", "<b>"]}, {"model.add_tokens": ["<a>", "<b>"]}),
        (
            {"special_tokens": {"additional_special_tokens": ["<a>"], "pad_token": "<p>"}},
            {"model.add_tokens": ["<a>"]},
        ),
        ({"train_on_inputs": True}, {"data.loss_on": "all"}),
        ({"excess_length_strategy": "truncate"}, {"data.on_long": "truncate"}),
        (
            {
                "datasets": [
                    {
                        "path": "org/agent",
                        "type": "chat_template",
                        "field_tools": "functions",
                        "roles_to_train": ["gpt", "tool"],
                        "roles": {"tool": ["observation"], "assistant": ["gpt"]},
                    }
                ]
            },
            {
                "data.roles_to_train": ["assistant", "tool"],
                "data.columns": {"tools": "functions"},
                "data.loss_on": "completion",
            },
        ),
        (
            {"datasets": [{"path": "org/segments", "type": "input_output"}]},
            {"data.format": "segments"},
        ),
        ({"batch_size": 16, "gradient_accumulation_steps": None}, {"train.global_batch_size": 16}),
        ({"model_config": {"output_router_logits": True}}, {"train.router_aux_loss": True}),
        (
            {
                "datasets": [
                    {
                        "path": "org/chats",
                        "type": "chat_template",
                        "field_messages": "conversations",
                        "message_property_mappings": {"role": "from", "content": "value"},
                    }
                ]
            },
            {"data.format": "messages", "data.columns": {"messages": "conversations"}},
        ),
        (
            {"datasets": [{"path": "org/chats", "type": "sharegpt", "conversation": "chatml"}]},
            {
                "data.format": "messages",
                "data.columns": {"messages": "conversations"},
                "data.template": "chatml",
            },
        ),
        (
            {"datasets": [{"path": "org/raw", "type": "completion", "field": "content"}]},
            {"data.format": "text", "data.columns": {"text": "content"}},
        ),
    ],
    "llama_factory": [
        ({}, {"method.r": 8, "method.alpha": 16, "train.global_batch_size": 8}),
        (
            {"dataset_dir": "REMOTE:org/demo"},
            {"data.train": "hf://datasets/org/demo/identity.json"},
        ),
        (
            {"stage": "dpo", "pref_beta": 0.2, "pref_loss": "sigmoid", "pref_ftx": 0.1},
            PREFERENCE
            | {"method.loss": "dpo", "method.beta": 0.2, "method.sft_weight": 0.1, "method.r": 8},
        ),
        (
            {"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.7, "finetuning_type": "full"},
            PREFERENCE | {"method.loss": "simpo", "method.gamma": 0.7, "method.student": "full"},
        ),
        (
            {"stage": "kto", "pref_beta": 0.1, "kto_rejected_weight": 0.5, "quantization_bit": 4},
            PREFERENCE
            | {
                "method.loss": "kto",
                "method.undesirable_weight": 0.5,
                "model.base_dtype": "nf4",
            },
        ),
        ({"stage": "rm", "finetuning_type": "full"}, REWARD | {"method.student": "full"}),
        (
            {"stage": "pt", "val_size": 0.1},
            TEXT | {"data.eval_fraction": 0.1, "method.name": "lora"},
        ),
        (
            {"streaming": True, "buffer_size": 100, "max_steps": 9},
            {"data.streaming": True, "data.buffer": 96, "data.on_long": "truncate"},
        ),
        ({"streaming": True}, {"data.streaming": False}),
        ({"finetuning_type": "full"}, {"method.name": "full"}),
        ({"quantization_bit": 4}, {"method.name": "qlora"}),
        ({"quantization_bit": 8}, {"model.base_dtype": "int8"}),
        ({"lora_target": "q_proj,v_proj"}, {"method.target_modules": ["q_proj", "v_proj"]}),
        ({"additional_target": "lm_head"}, {"method.modules_to_save": ["lm_head"]}),
        (
            {"adapter_name_or_path": "saves/a", "lora_rank": 32},
            {"model.adapter": "saves/a", "model.adapter_mode": "continue", "method.r": 16},
        ),
        (
            {"adapter_name_or_path": "saves/a", "create_new_adapter": True},
            {"model.adapter_mode": "merge", "method.r": 8},
        ),
        (
            {
                "adapter_name_or_path": "saves/a",
                "create_new_adapter": True,
                "quantization_bit": 4,
            },
            {"model.adapter_mode": "continue"},
        ),
        (
            {"add_tokens": "<a>,<b>", "add_special_tokens": "<|c|>", "resize_vocab": True},
            {"model.add_tokens": ["<a>", "<b>", "<|c|>"]},
        ),
        ({"loraplus_lr_ratio": 16.0}, {"method.lora_plus_ratio": 16}),
        ({"pissa_init": True}, {"method.init": "pissa"}),
        ({"use_dora": True}, {"method.use_dora": True}),
        ({"train_on_prompt": True}, {"data.loss_on": "all"}),
        ({"mask_history": True}, {"data.loss_on": "last"}),
        ({"val_size": 0.1}, {"data.eval_fraction": 0.1}),
        ({"max_grad_norm": 0.0}, {"train.max_grad_norm": 0}),
        ({"default_system": "Be brief."}, {"data.system_prompt": "Be brief."}),
        ({"disable_gradient_checkpointing": True}, {"train.activation_checkpointing": False}),
        ({"template": "empty"}, {"data.template": "none"}),
        ({"fp16": True, "bf16": False}, {"model.dtype": "auto"}),
        ({"save_total_limit": 3}, {"train.keep_checkpoints": 3}),
        ({"max_steps": 100, "warmup_steps": 10, "warmup_ratio": 0}, {"train.warmup_ratio": 0.1}),
    ],
    "trl": [
        (
            {"loss_type": "ipo", "beta": 0.3, "learning_rate": None},
            PREFERENCE | {"method.loss": "ipo", "method.beta": 0.3, "train.learning_rate": 1e-6},
        ),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
            PREFERENCE | {"method.loss": "dpo", "method.sft_weight": 0.5},
        ),
        (
            {"dpo_config": {"beta": 0.4, "precompute_ref_log_probs": True}},
            PREFERENCE | {"method.loss": "dpo", "method.beta": 0.4},
        ),
        (
            {"beta": 0.2, "desirable_weight": 1.5, "use_peft": None},
            PREFERENCE
            | {"method.loss": "kto", "method.desirable_weight": 1.5, "method.student": "full"},
        ),
        (
            {"beta": 2.0, "loss_type": "simpo", "simpo_gamma": 0.3, "load_in_4bit": True},
            PREFERENCE | {"method.loss": "simpo", "method.gamma": 0.3, "model.base_dtype": "nf4"},
        ),
        (
            {"reward_config": {"center_rewards_coefficient": 0.01, "disable_dropout": True}},
            REWARD,
        ),
        (
            {"center_rewards_coefficient": 0.01, "learning_rate": None},
            REWARD | {"train.learning_rate": 1e-4},
        ),
        ({"lora_task_type": "SEQ_CLS"}, REWARD | {"method.r": 32}),
        (
            {"beta": 0.2, "output_dir": "llama-orpo"},
            PREFERENCE | {"method.loss": "orpo", "method.beta": 0.2},
        ),
        ({"dataset_streaming": True, "max_steps": 9}, {"data.streaming": True}),
        ({}, {"method.r": 32, "method.dropout": 0.05, "train.global_batch_size": 16}),
        ({"dataset_name": None}, {"train.logging_steps": 10, "method.name": "lora"}),
        (
            {"dataset_name": None, "learning_rate": None},
            {"train.learning_rate": 2e-5, "train.activation_checkpointing": True},
        ),
        ({"use_peft": None, "lora_r": None}, {"method.name": "full"}),
        ({"load_in_4bit": True}, {"method.name": "qlora"}),
        ({"max_length": None}, {"data.on_long": "error"}),
        ({"max_length": 4096}, {"data.on_long": "truncate", "data.max_length": 4096}),
        ({"bf16": False}, {"model.dtype": "float32"}),
        ({"bf16": False, "fp16": True}, {"model.dtype": "auto"}),
        ({"dtype": "bfloat16", "bf16": False}, {"model.dtype": "bfloat16"}),
        ({"dataset_text_field": "content"}, {"data.columns": {"text": "content"}}),
        ({"completion_only_loss": False}, {"data.loss_on": "all"}),
        ({"assistant_only_loss": True}, {"data.loss_on": "completion"}),
        ({"max_grad_norm": 0}, {"train.max_grad_norm": 0}),
        ({"max_grad_norm": None}, {"train.max_grad_norm": 0}),
        (
            {
                "dataset_name": None,
                "datasets": [{"path": "org/mix", "name": "en", "split": "train[:9]"}],
                "test_split_size": 0.1,
            },
            {"data.train": "org/mix:en", "data.split": "train[:9]", "data.eval_fraction": 0.1},
        ),
        ({"eval_strategy": "epoch"}, {"data.eval": "org/set", "data.eval_split": "test"}),
        (
            {
                "dataset_name": None,
                "dataset_mixture": {
                    "datasets": [{"id": "a/b", "config": "en", "columns": ["m"], "weight": 1.0}],
                    "test_split_size": 0.1,
                },
            },
            {"data.train": "a/b:en", "data.eval_fraction": 0.1},
        ),
        ({"optim": "adamw_torch_8bit"}, {"train.optimizer": "adamw_torch_fused"}),
        ({"save_total_limit": 1}, {"train.keep_checkpoints": 1}),
    ],
}

LISTED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "axolotl": [
        ({"sample_packing": True}, "train_tokens / train_examples"),
        (
            {"datasets": [{"path": "a/b", "type": "alpaca", "shards": 4}, {"path": "c/d"}]},
            "datasets[0].shards",
        ),
        ({"evals_per_epoch": 4}, "evals_per_epoch"),
        ({"saves_per_epoch": 1}, "saves_per_epoch"),
        ({"save_steps": 0.5}, "save_steps"),
        ({"warmup_ratio": None, "warmup_steps": 10}, "warmup_steps"),
        ({"optimizer": "lion_8bit"}, "optimizer"),
        ({"optimizer": "muon"}, "optimizer"),
        ({"lr_scheduler": "rex"}, "train.scheduler is cosine unless you set it"),
        ({"cosine_min_lr_ratio": 0.1}, "cosine_min_lr_ratio"),
        ({"lora_target_linear": None}, "lora_target_modules is not set"),
        ({"lora_model_dir": "earlier", "tokens": ["<a>"]}, "keeps its own tokens"),
        ({"relora_steps": 100}, "relora_steps"),
        ({"peft_layers_to_transform": [0, 1]}, "peft_layers_to_transform"),
        ({"unfrozen_parameters": ["lm_head.*"], "adapter": None}, "unfrozen_parameters"),
        ({"special_tokens": {"eos_token": "</s>"}}, "special_tokens.eos_token"),
        ({"added_tokens_overrides": {128041: "<a>"}}, "added_tokens_overrides"),
        ({"tokens": {"bos_token": "<s>"}}, "special_tokens.bos_token"),
        ({"model_config": {"rope_theta": 1e6}}, "model_config.rope_theta"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
        ({"curriculum_sampling": True}, "curriculum_sampling"),
        ({"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "SpectrumPlugin"),
        ({"sequence_parallel_degree": 4}, "sequence_parallel_degree"),
        ({"activation_offloading": "legacy"}, "activation_offloading"),
        ({"min_sample_len": 100}, "min_sample_len"),
        ({"random_init_weights": True}, "random_init_weights"),
        ({"adam_beta2": 0.95}, "adam_beta2"),
        ({"qat": {"weight_dtype": "int8"}}, "qat.weight_dtype"),
        ({"load_best_model_at_end": False}, "Axolotl saves the last weights"),
        ({"lisa_n_layers": 4}, "lisa_n_layers"),
        ({"pretraining_sample_concatenation": True}, "Axolotl counts packed rows"),
        ({"use_eaft": True, "eaft_k": 20}, "eaft_k"),
        ({"use_dynamic_finetuning": True}, "use_dynamic_finetuning"),
        ({"reinit_weights": True}, "reinit_weights"),
        ({"fp8": True}, "fp8"),
        ({"exact_deduplication": True}, "exact_deduplication"),
        ({"tokenizer_use_mistral_common": True}, "tokenizer_use_mistral_common"),
        ({"use_swanlab": True, "swanlab_mode": "cloud"}, "swanlab_mode"),
        (
            {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}},
            "bnb_4bit_quant_type: fp4",
        ),
        (
            {"datasets": [{"path": "a", "type": "chat_template", "drop_system_message": True}]},
            "drop_system_message",
        ),
        (
            {"datasets": [{"path": "a", "type": "chat_template", "field_thinking": "why"}]},
            "field_thinking: why",
        ),
        (
            {"datasets": [{"path": "a", "type": "chat_template", "roles_to_train": ["all"]}]},
            "roles",
        ),
    ],
    "llama_factory": [
        ({"stage": "dpo", "pref_loss": "orpo", "pref_ftx": 0.5}, "orpo has none"),
        ({"stage": "kto", "pref_ftx": 0.5}, "pref_ftx: 0.5: kto has none"),
        ({"packing": True}, "train_tokens / train_examples"),
        ({}, "cutoff_len"),
        ({"dataset": "identity,alpaca_en_demo"}, "alpaca_en_demo"),
        (
            {"dataset": "a,b", "mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"},
            "all datasets are used up",
        ),
        (
            {"dataset": "a,b", "mix_strategy": "interleave_under", "interleave_probs": "0.7"},
            "2 probabilities",
        ),
        ({"tool_format": "qwen"}, "tool_format"),
        ({"use_galore": True, "galore_layerwise": True}, "use_galore"),
        ({"use_badam": True, "badam_mode": "layer"}, "use_badam"),
        ({"use_muon": True}, "use_muon"),
        ({"use_dft_loss": True}, "use_dft_loss"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"add_tokens": "<a>,<b>"}, "additional_target is not set"),
        ({"adapter_name_or_path": "saves/a", "add_tokens": "<a>"}, "keeps its own tokens"),
        ({"adapter_name_or_path": "saves/a,saves/b"}, "only one adapter can be the start"),
        ({"adapter_name_or_path": "saves/a", "finetuning_type": "full"}, "adapter_name_or_path"),
        ({"new_special_tokens_config": "tokens.yaml"}, "new_special_tokens_config"),
        ({"quantization_bit": 3}, "quantization_bit"),
        ({"val_size": 100}, "val_size"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type"),
        ({"template": "default"}, "template"),
        ({"streaming": True}, "streaming"),
        ({"disable_shuffling": True}, "disable_shuffling"),
        ({"moe_aux_loss_coef": 0.01}, "moe_aux_loss_coef"),
        ({}, "save_total_limit is not set"),
        ({"stage": "pt"}, "LLaMA-Factory counts packed rows of 2048 tokens"),
        ({"val_size": 0.1}, "LLaMA-Factory saves the last weights"),
        ({"quantization_bit": 4, "quantization_type": "fp4"}, "quantization_type: fp4"),
        ({"use_kt": True, "cpu_infer": 32, "chunk_size": 8192}, "cpu_infer"),
    ],
    "trl": [
        ({"packing": True}, "train_tokens / train_examples"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing_strategy: bfd_split"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy: sequential"),
        ({"eval_strategy": "steps"}, "TRL / Transformers saves the last weights"),
        ({"peft_config": {"bias": "all"}}, "peft.bias: all"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type: fp4"),
        ({"beta": 0.1, "label_smoothing": 0.1}, "does not use it with sigmoid"),
        ({"beta": 0.1}, "dpo is assumed: check method.loss"),
        ({"beta": 0.1, "desirable_weight": 1.0, "max_prompt_length": 512}, "max_prompt_length"),
        ({"loss_type": "sigmoid", "rpo_alpha": 1.0, "loss_weights": [2.0]}, "loss_weights"),
        ({}, "completion_only_loss is not set"),
        ({}, "without a chat template"),
        ({}, "save_total_limit is not set"),
        ({"max_length": None}, "max_length"),
        ({"output_dir": "model-DPO"}, "the name says dpo"),
        ({"output_dir": "gemma_reward"}, "the name says reward"),
        ({"dataset_name": "org/kto-mix"}, "the name says kto"),
        ({"datasets": [{"path": "a/b", "weight": 0.5}]}, "datasets[0].weight"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"lora_target_modules": None}, "lora_target_modules is not set"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"chat_template_path": "t.jinja"}, "chat_template_path"),
        ({"eos_token": "<|im_end|>"}, "eos_token"),
        ({"activation_offloading": True}, "activation_offloading"),
        ({"lora_target_parameters": ["experts"]}, "lora_target_parameters"),
        ({"warmup_steps": 100}, "warmup_steps"),
        ({"save_strategy": "epoch"}, "save_strategy"),
        ({"optim": "lomo"}, "optim"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
}

NOT_NEEDED: dict[str, tuple[str, ...]] = {
    "axolotl": (
        *("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm"),
        *("liger_fused_linear_cross_entropy", "cut_cross_entropy", "save_only_model"),
        *("pad_to_sequence_len", "eval_sample_packing", "flex_attention", "sdp_attention"),
        *("dataset_prepared_path", "dataset_processes", "lora_mlp_kernel", "lora_qkv_kernel"),
        *("loss_watchdog_threshold", "gpu_memory_limit", "hub_model_id", "deepspeed", "strict"),
        *("save_first_step", "eval_batch_size", "group_by_length", "torch_compile"),
        *("include_tokens_per_second", "embeddings_skip_upcast", "total_num_tokens"),
        *("tiled_mlp", "sample_pack_sequentially", "push_dataset_to_hub", "attention"),
        *("chunked_cross_entropy", "use_kernels", "dp_shard_size", "tensor_parallel_size"),
    ),
    "llama_factory": (
        *("overwrite_cache", "flash_attn", "enable_liger_kernel", "use_unsloth", "use_unsloth_gc"),
        *("upcast_layernorm", "double_quantization", "ray_run_name", "save_only_model"),
        *("infer_dtype", "max_new_tokens", "temperature", "use_kv_cache", "use_v1_kernels"),
        *("include_num_input_tokens_seen", "push_to_hub", "run_name", "deepspeed", "fsdp"),
    ),
    "trl": (
        *("attn_implementation", "dataset_num_proc", "padding_free", "use_liger_kernel"),
        *("pad_to_multiple_of", "bf16_full_eval", "shuffle_dataset", "save_only_model"),
        *("gradient_checkpointing_kwargs", "push_to_hub", "dataloader_num_workers", "ddp_timeout"),
        *("torch_empty_cache_steps", "eval_packing", "project", "use_bnb_nested_quant"),
        *("env.CUDA_VISIBLE_DEVICES", "gradient_checkpointing_use_reentrant"),
    ),
}


def cases(table: dict[str, Any]) -> list[Any]:
    """(trainer, changed keys, expectation) of every trainer, named by the keys."""
    return [
        pytest.param(trainer, *case, id=f"{trainer}-{','.join(map(str, case[0])) or 'plain'}")
        for trainer, entries in table.items()
        for case in entries
    ]


@pytest.fixture
def read(tmp_path):
    def read(values):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return translate(path)

    return read


def config_of(trainer: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The trainer's config with these changes; None removes nothing, as an empty key in YAML."""
    return BASES[trainer] | changes


@pytest.mark.parametrize(("trainer", "changes", "part"), cases(REFUSED))
def test_what_trains_something_else_is_refused_by_its_key(read, trainer, changes, part) -> None:
    with pytest.raises(UserError, match=part) as caught:
        read(config_of(trainer, changes))
    assert any(key in str(caught.value) for key in changes)


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_of_another_trainer_is_refused_by_name(read, name) -> None:
    with pytest.raises(UserError, match=r"not supported|not a config of a") as one:
        read(OTHERS[name])
    if "unknown" not in name and name != "no trainer":
        assert name.split(",")[0] in str(one.value)


@pytest.mark.parametrize(("trainer", "changes", "expected"), cases(BECOMES))
def test_what_is_carried_has_the_right_value(read, trainer, changes, expected) -> None:
    found = read(config_of(trainer, changes))
    config = found.checked()
    for key, value in expected.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value, key
    assert not any("unknown key" in text for text in found.not_carried_over)


@pytest.mark.parametrize(("trainer", "changes", "part"), cases(LISTED))
def test_what_is_not_carried_is_listed(read, trainer, changes, part) -> None:
    found = read(config_of(trainer, changes))
    assert any(part in text for text in found.not_carried_over)
    assert not any("unknown key" in text for text in found.not_carried_over)


@pytest.mark.parametrize("trainer", NOT_NEEDED)
def test_what_changes_nothing_is_known(read, trainer) -> None:
    found = read(config_of(trainer, dict.fromkeys(NOT_NEEDED[trainer], 1)))
    for key in NOT_NEEDED[trainer]:
        assert any(text.startswith(f"{key}: 1: ") for text in found.not_needed), key


def test_plugins_that_only_make_training_faster_are_not_gaps(read) -> None:
    plugins = ["axolotl.integrations.liger.LigerPlugin", "a.b.CutCrossEntropyPlugin"]
    found = read(config_of("axolotl", {"plugins": plugins}))
    assert sum("plugins: " in text for text in found.not_needed) == 2
    assert not any("plugins" in text for text in found.not_carried_over)


def test_one_meaning_of_a_key_is_not_a_gap(read) -> None:
    """What training here does anyway, and what a file names and does not use."""
    changes = {"packing_strategy": "bfd", "bnb_4bit_quant_type": "fp4", "eval_strategy": "steps"}
    peft = {"bias": "none", "task_type": "CAUSAL_LM", "peft_type": "PeftType.LORA"}
    found = read(config_of("trl", changes | {"load_best_model_at_end": True, "peft_config": peft}))
    names = (*changes, "peft.", "load_best_model_at_end")
    gaps = [text for text in found.not_carried_over if text.startswith(names)]
    assert gaps == [
        "peft.target_modules is not set: peft chooses modules by model, intel-ft uses all-linear"
    ]
    axolotl = read(BASES["axolotl"])
    assert axolotl.value_of("data.eval_fraction") == 0.05
    assert not any("saves the last weights" in text for text in axolotl.not_carried_over)


def test_no_clipping_is_mapped_and_not_also_a_gap(read) -> None:
    found = read(config_of("axolotl", {"max_grad_norm": 0}))
    assert any("max_grad_norm: 0 -> train.max_grad_norm: 0" in text for text in found.mapped)
    assert not any("max_grad_norm" in text for text in found.not_carried_over)


def test_the_command_line_refuses_an_unknown_trainer_with_2(tmp_path) -> None:
    path = tmp_path / "swift.yaml"
    path.write_text(yaml.safe_dump(OTHERS["ms-swift"]))
    with pytest.raises(UserError, match="ms-swift") as caught:
        init.run(source=path, output=tmp_path / "out.yaml")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out.yaml").exists()


MIXTURES = {
    "axolotl": (
        {
            "chat_template": "llama3",
            "datasets": [
                {"path": "a/b", "type": "alpaca", "split": "train[:9]"},
                {"path": "c/d", "type": "chat_template", "field_messages": "turns"},
                {"path": "e/f", "type": "completion", "field": "body"},
            ],
        },
        [
            {"path": "a/b", "split": "train[:9]", "format": "alpaca", "template": "alpaca"},
            {"path": "c/d", "format": "messages", "columns": {"messages": "turns"}},
            {"path": "e/f", "format": "text", "columns": {"text": "body"}, "on_long": "split"},
        ],
    ),
    "llama_factory": (
        {
            "dataset": "a, b",
            "dataset_dir": "ONLINE",
            "mix_strategy": "interleave_under",
            "interleave_probs": "0.7,0.3",
            "max_samples": 50,
        },
        [
            {"path": "a", "split": "train[:50]", "weight": 0.7},
            {"path": "b", "split": "train[:50]", "weight": 0.3},
        ],
    ),
    "trl": (
        {
            "dataset_name": None,
            "datasets": [{"path": "a/b", "name": "en"}, {"path": "c/d", "split": "test"}],
        },
        [{"path": "a/b:en"}, {"path": "c/d", "split": "test"}],
    ),
}


PLACES = (
    ({"path": "org/set", "name": "en", "revision": "v1"}, ["org/set@v1:en"]),
    ({"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}, ["a.jsonl", "b.jsonl"]),
    ({"path": "a.jsonl", "ds_type": "json"}, ["a.jsonl"]),
    ({"path": "./rows", "data_files": "a.jsonl"}, ["./rows/a.jsonl"]),
    (
        {"path": "org/set", "revision": "v1", "data_files": ["a.jsonl"]},
        ["hf://datasets/org/set@v1/a.jsonl"],
    ),
    ({"path": "s3://bucket/a.jsonl"}, ["s3://bucket/a.jsonl"]),
)


@pytest.mark.parametrize("trainer", ["axolotl", "trl"])
@pytest.mark.parametrize(("entry", "paths"), PLACES)
def test_where_a_dataset_is(read, trainer, entry, paths) -> None:
    found = read(config_of(trainer, {"dataset_name": None, "datasets": [entry]}))
    assert [source.path for source in found.checked().data.sources] == paths


@pytest.mark.parametrize("trainer", MIXTURES)
def test_several_datasets_become_sources(read, trainer) -> None:
    changes, expected = MIXTURES[trainer]
    found = read(config_of(trainer, changes))
    sources = found.checked().data.sources
    assert len(sources) == len(expected)
    for source, values in zip(sources, expected, strict=True):
        assert {name: getattr(source, name) for name in values} == values
    written = yaml.safe_load(found.to_yaml())["data"]["train"]
    assert [one["path"] for one in written] == [one["path"] for one in expected]
    assert not any(value is None for one in written for value in one.values())
    assert not any("unknown key" in text for text in found.not_carried_over)
