"""Axolotl's YAML in our terms; called from recipes.translate.

Keys and defaults: https://docs.axolotl.ai/docs/config-reference.html (axolotl-ai-cloud/axolotl,
docs/config.qmd and src/axolotl/utils/schemas), dataset types:
https://docs.axolotl.ai/docs/dataset-formats/
"""

from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import schedule, values
from intel_ft.recipes.axolotl_keys import NEEDLESS, UNSUPPORTED
from intel_ft.recipes.translation import Translation, is_off

NAME = "Axolotl"

_CHAT_TEMPLATES = {"chatml": "chatml", "alpaca": "alpaca", "llama2": "llama2"}


def translate(t: Translation, devices: int) -> None:
    """Take every key of an Axolotl file. Raises UserError for one that is no fine-tuning."""
    for key in ("rl", "reward_model", "process_reward_model", "pretraining_dataset"):
        if (value := t.take(key)) is not None:
            raise UserError(f"{t.origin}: {key}: {value}: only supervised fine-tuning is done here")
    t.move("base_model", "model.name_or_path")
    t.move("revision_of_model", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    values.machine(t, ("bf16", "bfloat16"))
    _method(t)
    _datasets(t)
    for old, new, change, default in (
        ("num_epochs", "train.epochs", values.number, 1.0),
        ("learning_rate", "train.learning_rate", values.number, None),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("gradient_clipping", "train.max_grad_norm", values.number, None),
        ("lr_scheduler", "train.scheduler", values.scheduler, "cosine"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.whole, None),
        ("max_steps", "train.max_steps", values.whole, None),
    ):
        t.convert(old, new, change, default)
    schedule.batch(t, "micro_batch_size", 1, devices, ("sample_packing",))
    values.optimizer(t, "optimizer", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t, 0.03)
    schedule.checkpoints(t, None)
    t.convert("gradient_checkpointing", "train.activation_checkpointing", bool)
    if t.got("data.eval_fraction") or t.got("data.eval"):
        t.convert("early_stopping_patience", "train.early_stopping", values.whole)
    _trackers(t)
    t.move("output_dir", "output.directory", "model-out")
    t.needless(NEEDLESS)
    t.needless(values.SHARED_NEEDLESS)
    t.unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)


def _method(t: Translation) -> None:
    adapter, four, eight = t.take("adapter"), t.flag("load_in_4bit"), t.flag("load_in_8bit")
    if adapter is None:
        values.method(t, "full", "adapter: empty")
    elif adapter not in ("lora", "qlora"):
        raise UserError(f"{t.origin}: adapter: {adapter}: known here are lora, qlora and none")
    else:
        name = "qlora" if adapter == "qlora" or four else "lora"
        values.method(t, name, f"adapter: {adapter}" + (", load_in_4bit: true" if four else ""))
    if four and adapter == "qlora":
        t.meaningless.append("load_in_4bit: true: it is what qlora does")
    if eight and adapter == "lora":
        values.int8_base(t, "load_in_8bit: true")
    elif eight:
        t.cannot("load_in_8bit", True, f"not with adapter: {adapter}")
    if adapter is None:
        t.needless({"lora_*": "all weights are trained", "peft_*": "all weights are trained"})
        return
    t.convert("lora_r", "method.r", values.whole, 8)
    t.convert("lora_alpha", "method.alpha", values.number, 16.0)
    t.convert("lora_dropout", "method.dropout", values.number, 0.0)
    if t.flag("lora_target_linear"):
        t.put("method.target_modules", "all-linear", "lora_target_linear: true")
        t.unsupported({"lora_target_modules": "lora_target_linear was taken"})
    else:
        t.convert("lora_target_modules", "method.target_modules", values.modules)
    t.move("peft_use_dora", "method.use_dora")
    t.move("peft_use_rslora", "method.use_rslora")
    values.init_weights(t, "peft_init_lora_weights")
    for old, key in (
        ("lora_modules_to_save", "method.modules_to_save"),
        ("loraplus_lr_ratio", "method.lora_plus_ratio"),
    ):
        if (value := t.take(old)) is not None:
            values.field_or_cannot(t, old, key, value, "not in this version")


def _datasets(t: Translation) -> None:
    t.convert("sequence_len", "data.max_length", values.whole, 512)
    template = t.take("chat_template")
    if template is not None and not is_off(t.left.get("datasets[0].chat_template")):
        t.meaningless.append(f"chat_template: {template}: the dataset's own goes first")
        template = None
    _dataset(t, "datasets", "data.train", "data.split")
    if t.got("data.on_long"):
        t.needless({"excess_length_strategy": "completions are split there before it counts"})
    else:
        t.convert("excess_length_strategy", "data.on_long", _on_long, "drop")
    if template is not None:
        _template(t, "chat_template", str(template))
    if t.flag("train_on_inputs"):
        t.put("data.loss_on", "all", "train_on_inputs: true")
    if any(key.startswith("test_datasets[0]") for key in t.left):
        _dataset(t, "test_datasets", "data.eval", "data.eval_split")
    t.convert("val_set_size", "data.eval_fraction", values.share)


def _on_long(value: Any) -> str:
    words = {"drop": "drop", "truncate": "truncate", "raise": "error"}
    if str(value) not in words:
        raise ValueError(f"known are {', '.join(words)}")
    return words[str(value)]


def _dataset(t: Translation, old: str, new: str, split: str) -> None:
    """The first of a list of datasets; the others are listed."""
    first = f"{old}[0]"
    path, files = t.take(f"{first}.path"), t.take(f"{first}.data_files")
    name = t.take(f"{first}.name")
    if isinstance(files, list):
        for extra in files[1:]:
            t.cannot(f"{first}.data_files", extra, "one file or folder is read: join them")
        files = files[0]
    if files and path and Path(str(path)).suffix == "" and path not in ("json", "csv", "parquet"):
        t.cannot(f"{first}.data_files", files, "the Hub dataset's own files are read")
        files = None
    source = files or path
    if source is None:
        return
    t.put(new, f"{source}:{name}" if name else str(source), f"{first}.path")
    t.move(f"{first}.split", split)
    kind = t.take(f"{first}.type")
    if new == "data.train" and isinstance(kind, str):
        _kind(t, f"{first}.type", kind)
    elif kind is not None:
        t.meaningless.append(f"{first}.type: {kind}: data.eval has the format of data.train")
    template = t.take(f"{first}.chat_template")
    if template is not None:
        _template(t, f"{first}.chat_template", str(template))
    fields = {
        "field_messages": "messages",
        "message_field_role": "role",
        "message_field_content": "content",
        "message_property_mappings.role": "role",
        "message_property_mappings.content": "content",
        "field": "text",
        "field_system": "system",
        "type.field_instruction": "instruction",
        "type.field_input": "input",
        "type.field_output": "output",
    }
    for key, ours in fields.items():
        values.column(t, f"{first}.{key}", ours)
    _learnt(t, first)
    t.needless(
        {
            f"{first}.ds_type": "told from the file's ending",
            f"{first}.trust_remote_code": "dataset scripts are never run",
        }
    )
    t.unsupported(
        {
            f"{first}.roles.*": "roles are user, assistant and system: rename them in the data",
            f"{first}.*": "the format's columns and templates are fixed here",
            f"{old}[*": "one source is read: join them into one file",
        }
    )


def _learnt(t: Translation, first: str) -> None:
    """Which turns of a conversation the loss is on: the assistant's, each with its end."""
    roles, ends = t.take(f"{first}.roles_to_train"), t.take(f"{first}.train_on_eos")
    if roles == ["assistant"]:
        t.put("data.loss_on", "completion", f"{first}.roles_to_train: [assistant]")
    elif roles is not None:
        why = "the loss is on the assistant's turns, or on all (data.loss_on)"
        t.cannot(f"{first}.roles_to_train", roles, why)
    if ends == "turn":
        t.meaningless.append(f"{first}.train_on_eos: turn: the end of every answer is learnt")
    elif ends is not None:
        t.cannot(f"{first}.train_on_eos", ends, "the end of every answer is learnt, and no other")


def _kind(t: Translation, old: str, kind: str) -> None:
    formats = {
        "alpaca": ("alpaca", "alpaca"),
        "chat_template": ("messages", "auto"),
        "completion": ("text", "auto"),
        "alpaca_chat.load_qa": ("question_answer", "alpaca"),
        "input_output": None,
    }
    found = formats.get(kind)
    if found is None:
        known = ", ".join(name for name, value in formats.items() if value)
        t.cannot(old, kind, f"known here are {known}: put the data into one of data.format's forms")
        return
    t.put("data.format", found[0], f"{old}: {kind}")
    t.put("data.template", found[1], f"{old}: {kind}")
    if kind == "completion":
        t.put("data.on_long", "truncate", f"{old}: {kind}")
        t.cannot(old, kind, "texts longer than sequence_len are split there, and cut here")


def _template(t: Translation, old: str, name: str) -> None:
    """A chat template by Axolotl's name; the models' own ones are in their tokenizers."""
    if name == "jinja":
        t.cannot(old, name, "put it into the model folder's tokenizer and say template: tokenizer")
    elif t.got("data.format") in ("alpaca", "text"):
        t.meaningless.append(f"{old}: {name}: the dataset's type says how it is written")
    elif name in _CHAT_TEMPLATES:
        t.put("data.template", _CHAT_TEMPLATES[name], f"{old}: {name}")
    else:
        t.put("data.template", "auto", f"{old}: {name}", values.OWN_TEMPLATE)


def _trackers(t: Translation) -> None:
    named = []
    for key, tracker in (
        ("use_tensorboard", "tensorboard"),
        ("wandb_project", "wandb"),
        ("mlflow_experiment_name", "mlflow"),
    ):
        if (value := t.take(key)) is not None:
            named.append(tracker)
            t.meaningless.append(f"{key}: {_word(value)}: see train.report_to")
    values.trackers(t, named, "the trackers it names")


def _word(value: Any) -> str:
    return "true" if value is True else str(value)
