"""Recognizes whose config a file is, by keys that only that trainer has, and what it trains.

Only supervised fine-tuning on text is translated; everything else is refused by its key.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import trl_keys
from intel_ft.recipes.translation import Translation, is_off

AXOLOTL, LLAMA_FACTORY, TRL = "Axolotl", "LLaMA-Factory", "TRL / Transformers"

_OTHER_TRAINERS = {
    "ms-swift": (
        *("tuner_type", "train_type", "sft_type", "rlhf_type", "tuner_backend", "swift_version"),
        *("custom_dataset_info", "split_dataset_ratio", "freeze_vit", "agent_template"),
        *("loss_scale", "lazy_tokenize", "load_from_cache_file", "attn_impl", "model_author"),
        *("external_plugins", "val_dataset", "target_regex", "aligner_lr", "vit_lr"),
    ),
    "LLaMA-Factory v1": (
        *("model_class", "sample_backend", "kernel_config.*", "dist_config.*", "init_config.*"),
        *("quant_config.name", "batching_strategy", "optim_config.*", "lr_scheduler_config.*"),
    ),
    "torchtune": ("model._component_", "tokenizer._component_", "checkpointer.*"),
    "Oumi": ("model.model_name", "training.trainer_type"),
    "LitGPT": ("checkpoint_dir", "data.class_path", "train.global_batch_size", "train.lr_warmup*"),
    "Ludwig": ("input_features*", "output_features*"),
    "AutoTrain": ("project_name", "params.*"),
    "MLX-LM": ("fine_tune_type", "iters", "lora_parameters.*"),
    "NeMo": ("exp_manager.*", "restore_from_path"),
    "verl": ("actor_rollout_ref.*", "data.train_files", "model.partial_pretrain"),
    "OpenRLHF": ("micro_train_batch_size", "pretrain"),
    "H2O LLM Studio": ("llm_backbone", "architecture.*"),
    "run_clm.py of Transformers": ("block_size", "validation_split_percentage"),
}
"""Trainers whose configs have keys in common with the supported ones, and keys of their own."""

_LLAMA_FACTORY = (
    *("finetuning_type", "stage", "cutoff_len", "lora_rank", "template", "dataset_dir"),
    *("lora_target", "val_size", "overwrite_cache"),
)
_TRL = (
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "lr_scheduler_type"),
    *("dataset_name", "use_peft", "peft.r", "max_steps"),
)


def trainer_of(path: Path, flat: dict[str, Any]) -> str:
    """The name of the supported trainer whose keys these are; UserError for any other file."""
    if "model.name_or_path" in flat:
        raise UserError(
            f"{path}: this is already a config of intel-ft: check it with intel-ft validate {path}"
        )
    for name, keys in _OTHER_TRAINERS.items():
        if found := _present(flat, keys):
            raise UserError(
                f"{path}: {found[0]}: this is a config of {name}, which is not supported: see"
                " docs/recipes.md, or start from a recipe (intel-ft init)"
            )
    if "model" in flat and (found := _present(flat, ("lora_rank", "cutoff_len"))):
        raise UserError(
            f"{path}: model with {found[0]}: this is a config of ms-swift or LLaMA-Factory v1,"
            " which are not supported: see docs/recipes.md, or start from a recipe (intel-ft init)"
        )
    if "base_model" in flat:
        return AXOLOTL
    if "model_name_or_path" in flat and _present(flat, _LLAMA_FACTORY):
        return LLAMA_FACTORY
    if _present(trl_keys.regroup(flat), _TRL):
        return TRL
    raise UserError(
        f"{path}: not a config of a supported trainer: Axolotl's has base_model, LLaMA-Factory's"
        " has model_name_or_path with finetuning_type or stage, those of TRL and Transformers"
        " have output_dir or per_device_train_batch_size"
    )


def refuse_keys(t: Translation, reasons: dict[str, str]) -> None:
    """Raise UserError for the first of these keys that is switched on. A key may end in `*`."""
    for pattern, why in reasons.items():
        for key in _present(t.left, (pattern,)):
            if not is_off(value := t.left[key]):
                raise UserError(f"{t.origin}: {key}: {value}: {why}")


def refuse_unknown(t: Translation, flat: dict[str, Any]) -> None:
    """Raise UserError where most of a file's keys are unknown: it is of another trainer."""
    unknown = [key for key, value in t.left.items() if not is_off(value)]
    if len(unknown) > 3 and len(unknown) > sum(not is_off(one) for one in flat.values()) / 2:
        names = ", ".join(unknown[:4])
        raise UserError(
            f"{t.origin}: not a config of a supported trainer: most of its keys are unknown to"
            f" {t.dialect} ({names}, ...)"
        )


def _present(flat: dict[str, Any], keys: Iterable[str]) -> list[str]:
    found = []
    for key in keys:
        if key.endswith("*"):
            found += [name for name in flat if name.startswith(key[:-1])]
        elif key in flat:
            found.append(key)
    return found
