"""Translates Axolotl's YAML.

Keys and defaults: https://docs.axolotl.ai/docs/config-reference.html (axolotl-ai-cloud/axolotl,
docs/config.qmd and src/axolotl/utils/schemas), dataset types:
https://docs.axolotl.ai/docs/dataset-formats/
"""

from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import UserError
from intel_ft.recipes import corpus, datasets, preferences, schedule, values
from intel_ft.recipes.axolotl_keys import (
    NOT_NEEDED,
    NOT_SFT,
    OF_A_NEW_ADAPTER,
    PLUGINS,
    UNSUPPORTED,
)
from intel_ft.recipes.recognize import refuse_keys
from intel_ft.recipes.translation import Translation, is_off

_PAIRS: dict[str, dict[str, str]] = {
    "intel": {},
    "icr": {},
    "ultra": {},
    "default": {},
    "prompt_pairs": {},
    "argilla_chat": {},
    "argilla": {"chosen": "chosen_response", "rejected": "rejected_response"},
}
"""Axolotl's shapes of preference data, and their columns with other names than here."""
_CHAT_TEMPLATES = {"chatml": "chatml", "alpaca": "alpaca", "llama2": "llama2"}


def translate(t: Translation, devices: int) -> None:
    """Translate every key of an Axolotl file; UserError if it trains something else here."""
    preferences.axolotl(t)
    refuse_keys(t, NOT_SFT)
    model_type = str(t.left.get("model_type") or "AutoModelForCausalLM")
    if any(word in model_type for word in ("Classification", "ImageText", "Vision2Seq")):
        raise UserError(
            f"{t.origin}: model_type: {model_type}: only text language models are supported"
        )
    t.move("base_model", "model.name_or_path")
    t.move("revision_of_model", "model.revision")
    t.move("trust_remote_code", "model.trust_remote_code")
    _precision(t)
    _method(t)
    _tokens(t)
    _datasets(t)
    for old, new, change, default in (
        ("num_epochs", "train.epochs", values.number, 1.0),
        ("learning_rate", "train.learning_rate", values.number, None),
        ("weight_decay", "train.weight_decay", values.number, 0.0),
        ("max_grad_norm", "train.max_grad_norm", values.number, 1.0),
        ("gradient_clipping", "train.max_grad_norm", values.number, None),
        ("lr_scheduler", "train.scheduler", values.scheduler, "cosine"),
        ("seed", "train.seed", values.number, 42),
        ("logging_steps", "train.logging_steps", values.positive_int, None),
        ("max_steps", "train.max_steps", values.positive_int, None),
    ):
        t.convert(old, new, change, default)
    _total_batch(t)
    packing = ("sample_packing", "pretraining_sample_concatenation")
    schedule.batch(t, "micro_batch_size", 1, devices, packing)
    values.optimizer(t, "optimizer", "adamw_torch_fused")
    values.adam(t, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8})
    schedule.warmup(t, 0.03)
    schedule.checkpoints(t, None)
    t.convert("gradient_checkpointing", "train.activation_checkpointing", bool)
    t.convert("model_config.output_router_logits", "train.router_aux_loss", bool)
    if t.value_of("data.eval_fraction") or t.value_of("data.eval"):
        t.convert("early_stopping_patience", "train.early_stopping", values.positive_int)
    _trackers(t)
    _plugins(t)
    t.move("output_dir", "output.directory", "model-out")
    corpus.streaming(t, "streaming", "streaming_multipack_buffer_size")
    values.four_bit_type(t, "bnb_config_kwargs.bnb_4bit_quant_type")
    t.take_not_needed(NOT_NEEDED)
    t.take_not_needed(values.SHARED_NOT_NEEDED)
    t.take_unsupported(UNSUPPORTED | values.SHARED_UNSUPPORTED)
    preferences.finish(t)


def _total_batch(t: Translation) -> None:
    """An older file's batch_size, which is micro_batch_size times the accumulation."""
    total, micro = t.read("batch_size", values.number), t.left.get("micro_batch_size") or 1
    if total is not None and is_off(t.left.get("gradient_accumulation_steps")):
        t.left["gradient_accumulation_steps"] = total / values.number(micro)
        t.mapped.append(f"batch_size: {total:g}: as micro_batch_size x gradient_accumulation_steps")
    elif total is not None:
        t.not_needed.append(f"batch_size: {total:g}: gradient_accumulation_steps gives it")


def _precision(t: Translation) -> None:
    """Translate precision and device. bf16 is auto where it is not set, and float32 where off."""
    names = ("bf16", "bfloat16", "fp16", "float16", "load_in_8bit")
    full = "bf16" in t.left and not any(t.left.get(key) for key in names)
    values.machine(t, ("bf16", "bfloat16"))
    if full:
        t.put("model.dtype", "float32", "bf16 and fp16 are off")


def _plugins(t: Translation) -> None:
    """Plugins that only make the same training faster are not needed."""
    for key in [name for name in t.left if name.startswith("plugins")]:
        given = t.take(key)
        for plugin in given if isinstance(given, list) else [given]:
            name = str(plugin).rpartition(".")[2]
            if name in PLUGINS:
                t.not_needed.append(f"{key}: {plugin}: {PLUGINS[name]}")
            elif plugin is not None:
                t.cannot_carry(key, plugin, "plugins are not run")


def _method(t: Translation) -> None:
    adapter, four, eight = t.take("adapter"), t.flag("load_in_4bit"), t.flag("load_in_8bit")
    if adapter is None:
        values.method(t, "full", "no adapter")
    elif adapter not in ("lora", "qlora"):
        raise UserError(f"{t.origin}: adapter: {adapter}: only lora, qlora and none are supported")
    else:
        name = "qlora" if adapter == "qlora" or four else "lora"
        values.method(t, name, f"adapter: {adapter}" + (", load_in_4bit: true" if four else ""))
    if four and adapter == "qlora":
        t.not_needed.append("load_in_4bit: true: implied by qlora")
    if eight and adapter == "lora":
        values.int8_base(t, "load_in_8bit: true")
    elif eight:
        t.cannot_carry("load_in_8bit", True, f"not supported with adapter: {adapter or 'none'}")
    if adapter is None:
        reason = "without an adapter all weights are trained"
        t.take_not_needed({"lora_*": reason, "peft_*": reason})
        return
    if (ratio := t.take("loraplus_lr_ratio")) is not None:
        t.put("method.lora_plus_ratio", ratio, f"loraplus_lr_ratio: {ratio}")
    if values.start_adapter(t, "lora_model_dir", "continue", OF_A_NEW_ADAPTER):
        return
    t.convert("lora_r", "method.r", values.positive_int, 8)
    t.convert("lora_alpha", "method.alpha", values.number, 16.0)
    t.convert("lora_dropout", "method.dropout", values.number, 0.0)
    if t.flag("lora_target_linear"):
        t.put("method.target_modules", "all-linear", "lora_target_linear: true")
        t.take_unsupported({"lora_target_modules": "lora_target_linear takes precedence"})
    else:
        values.targets(t, "lora_target_modules")
    t.move("peft_use_dora", "method.use_dora")
    t.move("peft_use_rslora", "method.use_rslora")
    values.init_weights(t, "peft_init_lora_weights")
    if (saved := t.take("lora_modules_to_save")) is not None:
        t.put("method.modules_to_save", saved, f"lora_modules_to_save: {saved}")


def _tokens(t: Translation) -> None:
    """New tokens, and the model's own special tokens under other names."""
    note = ""
    if t.value_of("method.name") != "full" and not t.value_of("method.modules_to_save"):
        note = "their embeddings are trained; Axolotl does not train them"
    for key in [key for key in t.left if key.startswith("tokens.")]:  # as older files name them
        t.left.setdefault(f"special_{key}", t.left.pop(key))
    values.new_tokens(t, "tokens", note)
    values.new_tokens(t, "special_tokens.additional_special_tokens", note)
    folder = Path(str(t.value_of("model.name_or_path")))
    for name in ("bos_token", "eos_token", "unk_token"):
        own = read_json(folder / "tokenizer_config.json").get(name) if folder.is_dir() else None
        own = own.get("content") if isinstance(own, dict) else own
        if own is not None and t.left.get(f"special_tokens.{name}") == own:
            t.not_needed.append(f"special_tokens.{name}: {own}: the tokenizer's own")
            t.take(f"special_tokens.{name}")


def _datasets(t: Translation) -> None:
    t.convert("sequence_len", "data.max_length", values.positive_int, 512)
    template = t.take("chat_template")
    if corpus.axolotl(t, template):
        return
    found = []
    for number in (several := datasets.numbers(t, "datasets")):
        name = f"data.train[{number}]" if len(several) > 1 else "data"
        with datasets.source(t, name) as one:
            more = _dataset(t, f"datasets[{number}]", "data.train", "data.split", template)
        found += [one, *({**one, "train": file} for file in more)]
    datasets.put_sources(t, "datasets", found)
    if t.value_of("data.on_long"):
        t.take_not_needed(
            {"excess_length_strategy": "Axolotl splits long completions before it applies"}
        )
    else:
        t.convert("excess_length_strategy", "data.on_long", _on_long, "drop")
    if template is not None and not found:
        _template(t, "chat_template", str(template))
    if t.flag("train_on_inputs"):
        t.put("data.loss_on", "all", "train_on_inputs: true")
    if datasets.numbers(t, "test_datasets"):
        more = _dataset(t, "test_datasets[0]", "data.eval", "data.eval_split", None)
        for extra in more:
            t.cannot_carry("test_datasets[0].data_files", extra, "only one file is evaluated")
        t.take_unsupported({"test_datasets[*": "only one dataset is evaluated: join them"})
    values.validation_share(t, "val_set_size")


def _on_long(value: Any) -> str:
    words = {"drop": "drop", "truncate": "truncate", "raise": "error"}
    if str(value) not in words:
        raise ValueError(f"supported are {', '.join(words)}")
    return words[str(value)]


def _dataset(t: Translation, first: str, new: str, split: str, default: Any) -> list[str]:
    """Translate one dataset, whose keys begin with `first`; returns its further files.

    default: the chat template of datasets that have none of their own.
    """
    where = datasets.places(t, first)
    if not where:
        return []
    t.put(new, where[0], f"{first}.path")
    t.move(f"{first}.split", split)
    kind = t.take(f"{first}.type")
    if new == "data.train" and isinstance(kind, str):
        _kind(t, f"{first}.type", kind)
    elif kind is not None:
        t.not_needed.append(f"{first}.type: {kind}: data.eval uses the format of data.train")
    _dataset_template(t, f"{first}.chat_template", default)
    fields = {
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "field_prompt": "prompt",
        "field_messages": "messages",
        "field": "text",
        "field_system": "system",
        "field_tools": "tools",
        "type.field_instruction": "instruction",
        "type.field_input": "input",
        "type.field_output": "output",
        "type.field_system": "system",
    }
    if kind == "sharegpt":
        t.left.setdefault(f"{first}.field_messages", "conversations")
    for key, column in fields.items():
        values.column(t, f"{first}.{key}", column)
    for place in ("message_field_", "message_property_mappings."):
        values.name_in_turns(t, f"{first}.{place}role", ("role", "from"), "role")
        values.name_in_turns(t, f"{first}.{place}content", ("content", "value"), "content")
    for role in ("system", "user", "assistant", "tool"):
        names = t.left.get(f"{first}.roles.{role}")
        if isinstance(names, list) and {values.ROLES.get(str(name)) for name in names} == {role}:
            t.not_needed.append(
                f"{first}.roles.{role}: {t.take(f'{first}.roles.{role}')}: read as it is"
            )
    trained = ("training", "train", "loss", "weight")
    values.name_in_turns(t, f"{first}.message_field_training", trained, "training")
    thoughts = ("reasoning_content", "reasoning", "thinking")
    values.name_in_turns(t, f"{first}.field_thinking", thoughts, thoughts[0])
    _supervised_turns(t, first)
    t.take_not_needed(
        {
            f"{first}.template_thinking_key": "the template gets it under the name that it reads",
            f"{first}.ds_type": "the file's extension determines it",
            f"{first}.trust_remote_code": "dataset scripts are never run",
        }
    )
    t.take_unsupported(
        {
            f"{first}.drop_system_message": "remove the system messages from the data",
            f"{first}.roles.*": f"rename the roles in the data to {', '.join(values.ROLES)}",
            f"{first}.*": "not read for this type: set data.columns and data.template",
        }
    )
    return where[1:]


def _dataset_template(t: Translation, place: str, default: Any) -> None:
    """The template of one dataset, its own or the default; older files name it conversation."""
    older = place.replace("chat_template", "conversation")
    if t.left.get(older) in _CHAT_TEMPLATES:
        t.left.setdefault(place, t.left.pop(older))
    own = t.take(place)
    if own is not None and default is not None:
        t.not_needed.append(
            f"chat_template: {default}: the dataset's own chat_template takes precedence"
        )
    if own is not None:
        _template(t, place, str(own))
    elif default is not None:
        _template(t, "chat_template", str(default))


def _supervised_turns(t: Translation, first: str) -> None:
    """Which turns of a conversation the loss is on: the assistant's, each with its end."""
    roles, ends = t.take(f"{first}.roles_to_train"), t.take(f"{first}.train_on_eos")
    if roles is not None:
        named = [values.ROLES.get(str(role)) for role in values.as_list(roles)]
        if None in named:
            t.cannot_carry(f"{first}.roles_to_train", roles, f"known are {', '.join(values.ROLES)}")
        elif named == ["assistant"]:
            t.not_needed.append(f"{first}.roles_to_train: {roles}: the loss is on the answers")
        else:
            t.put("data.roles_to_train", named, f"{first}.roles_to_train: {roles}")
    if ends == "turn":
        t.not_needed.append(
            f"{first}.train_on_eos: turn: the loss always covers the end of every answer"
        )
    elif ends is not None:
        reason = "the loss covers the end of every answer, and no other end"
        t.cannot_carry(f"{first}.train_on_eos", ends, reason)


def _kind(t: Translation, old: str, kind: str) -> None:
    formats = {
        "alpaca": ("alpaca", "alpaca"),
        "chat_template": ("messages", "auto"),
        "completion": ("text", "auto"),
        "sharegpt": ("messages", "auto"),
        "alpaca_chat.load_qa": ("question_answer", "alpaca"),
        "input_output": ("segments", "auto"),
    }
    format_and_template = formats.get(kind)
    if preferences.is_preference(t):
        _pairs(t, old, kind)
        return
    if format_and_template is None:
        supported = ", ".join(name for name, value in formats.items() if value)
        t.cannot_carry(
            old, kind, f"supported are {supported}: convert the data to one of these formats"
        )
        return
    t.put("data.format", format_and_template[0], f"{old}: {kind}")
    t.put("data.template", format_and_template[1], f"{old}: {kind}")
    if kind == "completion":
        t.put("data.on_long", "split", f"{old}: {kind}")


def _pairs(t: Translation, old: str, kind: str) -> None:
    """A type of preference data: TEMPLATE.COLUMNS, or chat_template.default."""
    family, _, shape = kind.partition(".")
    names = {"prompt": "input"} if family == "bradley_terry" else _PAIRS.get(shape)
    if names is None:
        supported = ", ".join(f"chatml.{name}" for name in _PAIRS)
        t.cannot_carry(old, kind, f"supported are {supported} and chat_template.default")
        return
    for ours, theirs in names.items():
        t.name_column(ours, theirs, f"{old}: {kind}")
    if family in _CHAT_TEMPLATES:
        t.put("data.template", _CHAT_TEMPLATES[family], f"{old}: {kind}")
    else:
        t.put("data.template", "auto", f"{old}: {kind}", values.TOKENIZER_TEMPLATE)


def _template(t: Translation, old: str, name: str) -> None:
    """A chat template by Axolotl's name; those of model families are in their tokenizers."""
    if name == "jinja":
        t.cannot_carry(old, name, values.TEMPLATE_REMEDY)
    elif t.value_of("data.format") in ("alpaca", "text"):
        t.not_needed.append(f"{old}: {name}: the dataset's type determines the template")
    elif name in _CHAT_TEMPLATES:
        t.put("data.template", _CHAT_TEMPLATES[name], f"{old}: {name}")
    else:
        t.put("data.template", "auto", f"{old}: {name}", values.TOKENIZER_TEMPLATE)


def _trackers(t: Translation) -> None:
    named = []
    for key, tracker in (
        ("use_tensorboard", "tensorboard"),
        ("wandb_project", "wandb"),
        ("mlflow_experiment_name", "mlflow"),
    ):
        if (value := t.take(key)) is not None:
            named.append(tracker)
            shown = "true" if value is True else value
            t.not_needed.append(f"{key}: {shown}: translated to train.report_to")
    values.trackers(t, named, "trackers in the file")
