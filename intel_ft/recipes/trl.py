"""Translates arguments of TRL and Transformers.

Either the YAML of TRL's command line (`trl sft --config`), which has ScriptArguments, SFTConfig and
ModelConfig in one file, https://huggingface.co/docs/trl/clis; or a set of objects saved as JSON or
YAML, each under its own name: TrainingArguments, peft's LoraConfig, BitsAndBytesConfig.
Keys and defaults: https://huggingface.co/docs/trl/sft_trainer (SFTConfig),
https://huggingface.co/docs/transformers/main_classes/trainer (TrainingArguments),
https://huggingface.co/docs/peft/package_reference/lora (LoraConfig).
"""

import re
from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import corpus, datasets, preferences, schedule, values
from intel_ft.recipes.recognize import refuse_keys
from intel_ft.recipes.translation import Translation, is_off
from intel_ft.recipes.trl_keys import (
    NOT_NEEDED,
    NOT_SFT,
    SFT,
    SFT_LOSSES,
    UNSUPPORTED,
    WORDS,
    regroup,
)


def translate(t: Translation, devices: int) -> None:
    """Translate every key of a set of arguments; UserError if it is not supervised training."""
    sft = any(key.startswith("sft_config.") for key in t.left)
    t.left = regroup(t.left)
    sft = sft or any(key in t.left for key in SFT)
    compares = preferences.trl(t)
    _refuse_other_training(t)
    if not compares:
        _refuse_other_adapters(t)
    for key in ("model_name_or_path", "model", "model_name"):
        t.move(key, "model.name_or_path")
    t.move("model_revision", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    _precision(t, sft)
    _method(t)
    _data(t)
    values.no_clipping(t)
    for old, new, change, default in (
        ("num_train_epochs", "train.epochs", values.number, 3.0),
        ("learning_rate", "train.learning_rate", values.number, _rate(t, compares, sft)),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("lr_scheduler_type", "train.scheduler", values.scheduler, "linear"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.positive_int, 10 if sft else 500),
    ):
        t.convert(old, new, change, default)
    schedule.max_steps(t)
    schedule.batch(t, "per_device_train_batch_size", 8, devices, ("packing",))
    values.optimizer(t, "optim", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t)
    schedule.checkpoints(t, 500)
    t.convert("gradient_checkpointing", "train.activation_checkpointing", bool, sft or None)
    values.report_to(t)
    t.move("output_dir", "output.directory")
    for key in ("streaming", "dataset_streaming"):
        corpus.streaming(t, key)
    _values_with_one_meaning(t)
    t.take_not_needed(NOT_NEEDED | values.SHARED_NOT_NEEDED)
    t.take_unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)
    preferences.finish(t)


def _rate(t: Translation, compares: bool, sft: bool) -> float:
    """The default of RewardTrainer, TRL's others on pairs, SFTTrainer, or Transformers."""
    if t.value_of("method.name") == "reward":
        return 1e-4
    if compares:
        return 1e-6
    return 2e-5 if sft else 5e-5


def _refuse_other_training(t: Translation) -> None:
    """UserError for a file of another trainer than SFT; a line where only its names tell."""
    refuse_keys(t, NOT_SFT)
    loss = t.left.get("loss_type")
    if loss is not None and loss not in SFT_LOSSES:
        raise UserError(f"{t.origin}: loss_type: {loss}: not a loss of supervised fine-tuning")
    for key in ("output_dir", "run_name", "dataset_name", "hub_model_id"):
        parts = re.split(r"[^a-z]+", str(t.left.get(key, "")).lower())
        if found := [word for word in WORDS if word in parts]:
            if preferences.is_preference(t):
                continue
            t.not_carried_over.append(
                f"{key}: {t.left[key]}: the name says {found[0]}: check that the file is for"
                " `trl sft`; it becomes supervised fine-tuning here"
            )


def _refuse_other_adapters(t: Translation) -> None:
    """UserError for an adapter that is not LoRA, or not of a language model."""
    kinds = {"peft.peft_type": "LORA", "peft.task_type": "CAUSAL_LM", "lora_task_type": "CAUSAL_LM"}
    for key, only in kinds.items():
        value = t.left.get(key)
        if not is_off(value) and str(value).rpartition(".")[2].upper() != only:
            raise UserError(f"{t.origin}: {key}: {value}: only {only} is supported")


def _values_with_one_meaning(t: Translation) -> None:
    """Keys of which one value is what training here does."""
    values.only(t, "peft.bias", (), "biases are never trained")
    for key in ("bnb.bnb_4bit_quant_type", "bnb_4bit_quant_type"):
        values.four_bit_type(t, key)
    row = "each example is whole in one row, cut at data.max_length, and never attends to another"
    values.only(t, "packing_strategy", ("bfd",), row)
    shuffled = ("random", "group_by_length")
    values.only(t, "train_sampling_strategy", shuffled, "each epoch is shuffled with train.seed")


def _precision(t: Translation, sft: bool) -> None:
    """Translate precision and device. `trl sft` with bf16: false trains in float32."""
    full = sft and t.left.get("bf16") is False and not t.left.get("fp16")
    values.machine(t)
    if full:
        t.put("model.dtype", "float32", "bf16: false, without fp16")
    for key in ("dtype", "torch_dtype"):
        _dtype(t, key)


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
    values.targets(t, names[3])
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
    _mixture(t)
    t.move("dataset_train_split", "data.split")
    _evaluation(t)
    field = t.take("dataset_text_field")
    if field is not None:
        t.put("data.format", "text", f"dataset_text_field: {field}")
    if field not in (None, "text"):
        t.name_column("text", str(field), "dataset_text_field")
    _length(t)
    if not preferences.is_preference(t):
        _loss(t, text=field is not None)
        _join(t, text=field is not None)


def _mixture(t: Translation) -> None:
    """The datasets of a DatasetMixtureConfig, one after another."""
    found = []
    for number in (several := datasets.numbers(t, "datasets")):
        name = f"data.train[{number}]" if len(several) > 1 else "data"
        with datasets.source(t, name) as one:
            more = _source(t, f"datasets[{number}]")
        found += [one, *({**one, "train": file} for file in more)]
    if found:
        datasets.put_sources(t, "datasets", found)
    if t.left.get("test_split_size") is not None:
        values.validation_share(t, "test_split_size")


def _source(t: Translation, first: str) -> list[str]:
    """One dataset, whose keys begin with `first`; returns its further files."""
    where = datasets.places(t, first)
    if where:
        t.put("data.train", where[0], f"{first}.path")
    t.move(f"{first}.split", "data.split")
    if t.left.get(f"{first}.weight") == 1:  # of its examples, all are used
        t.take_not_needed({f"{first}.weight": "all examples are used"})
    t.take_not_needed({f"{first}.columns": "columns that a format does not need are ignored"})
    t.take_unsupported({f"{first}.*": "this option of a dataset is not supported"})
    return where[1:]


def _length(t: Translation) -> None:
    """Translate the maximum length; `max_length: null` cuts nothing."""
    cuts = True
    if is_off(t.left.get("max_length")) and t.left.get("max_seq_length") is not None:
        t.convert("max_seq_length", "data.max_length", values.positive_int)
    elif is_off(t.left.get("max_length", 1024)):
        cuts = t.left.pop("max_length") is not None
        t.cannot_carry(
            "max_length",
            None,
            f"{t.dialect} cuts nothing then; here an example above data.max_length is an error:"
            " raise data.max_length to your longest example",
        )
    else:
        t.convert("max_length", "data.max_length", values.positive_int, 1024)
        t.take_unsupported({"max_seq_length": "max_length takes precedence"})
    if cuts:
        values.truncation(t, "max_length")


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
    elif not isinstance(source, str):
        reason = "several datasets have no test split together: set data.eval or data.eval_fraction"
        if not t.value_of("data.eval_fraction"):
            t.cannot_carry("dataset_test_split", split or "test", reason)
    else:
        old = f"dataset_test_split: {split}" if split else f"{t.dialect}'s default"
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
    elif t.measured is not None:
        loss = "completion" if t.measured.completions else "all"
        t.put("data.loss_on", loss, f"{t.dialect}'s default", f"for data of {t.measured.format}")
    else:
        t.not_carried_over.append(
            "completion_only_loss is not set: TRL then trains only on the completion of prompt and"
            " completion, but on all tokens of messages and text; intel-ft trains on the"
            " completion: for messages, set data.loss_on to all"
        )


def _join(t: Translation, text: bool) -> None:
    """Prompts and completions of plain text, which TRL joins without a chat template."""
    if t.measured is not None and t.measured.format == "prompt_completion":
        t.put(
            "data.template", "none", "prompt and completion are text", "TRL joins them as they are"
        )
    elif t.measured is None and not text:
        t.not_carried_over.append(
            "columns prompt and completion of plain text: TRL joins them without a chat template;"
            " intel-ft uses the tokenizer's, if it has one: for such data, set data.template to"
            " none"
        )
