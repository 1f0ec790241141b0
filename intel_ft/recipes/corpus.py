"""Translates continued pretraining of Axolotl and LLaMA-Factory, and data that is streamed.

Called by each trainer's module. Keys: https://docs.axolotl.ai/docs/dataset-formats/pretraining.html,
LLaMA-Factory's stage pt (data_args: streaming, buffer_size).
"""

from intel_ft.recipes import datasets, values
from intel_ft.recipes.translation import Translation, is_off

_WHOLE = "all text of a document is trained on, and its end"


def as_text(t: Translation, old: str) -> None:
    """Documents in the column text, cut into parts of at most data.max_length, nothing lost."""
    t.put("data.format", "text", old)
    t.put("data.on_long", "split", old)


def axolotl(t: Translation, template: object) -> bool:
    """Translate `pretraining_dataset`; whether the file has one. template: its chat_template."""
    name = "pretraining_dataset"
    keys = [key for key in t.left if key == name or key.startswith((f"{name}.", f"{name}["))]
    if all(is_off(t.left[key]) for key in keys):
        return False
    if name in t.left:
        t.left[f"{name}[0].path"] = t.left.pop(name)
    for key in [key for key in t.left if key.startswith(f"{name}.")]:
        t.left[key.replace(f"{name}.", f"{name}[0].", 1)] = t.left.pop(key)
    found = []
    for number in (several := datasets.numbers(t, name)):
        first = f"{name}[{number}]"
        with datasets.source(t, f"data.train[{number}]" if len(several) > 1 else "data") as one:
            for place in datasets.places(t, first)[:1]:
                t.put("data.train", place, f"{first}.path")
            t.move(f"{first}.split", "data.split")
            as_text(t, f"{first}.type: {t.take(f'{first}.type') or 'pretrain'}")
            values.column(t, f"{first}.text_column", "text")
        found.append(one)
    datasets.put_sources(t, name, found)
    t.take_not_needed({"streaming": f"{name} is always streamed in Axolotl"})
    t.cannot_carry(
        name,
        "streamed",
        "the whole dataset is read and stored once, tokenized: to stream it, set"
        " data.streaming=true and data.on_long=truncate, which cuts at data.max_length",
    )
    if template is not None:
        t.not_needed.append(f"chat_template: {template}: documents have no turns")
    reason = f"{name} takes precedence"
    t.take_unsupported({"datasets[*": reason, f"{name}[*": "this option is not supported"})
    evaluation = f"nothing is split off {name} in Axolotl: set data.eval or data.eval_fraction"
    t.take_unsupported(dict.fromkeys(("val_set_size", "test_datasets[*"), evaluation))
    t.take_not_needed(
        {
            "pretrain_multipack*": "documents are packed and never attend to each other",
            "train_on_inputs": _WHOLE,
            "excess_length_strategy": "long documents are split",
        }
    )
    return True


def streaming(t: Translation, key: str, size: str | None = None, default: int = 10_000) -> None:
    """Translate data that is streamed, where data.streaming can have it. size: of the buffer."""
    if is_off(t.left.get(key)):
        return
    t.take(key)
    data, train = t.config.get("data", {}), t.config.get("train", {})
    batch = train.get("global_batch_size") or 1
    reasons = {
        "train.max_steps is not set": not train.get("max_steps"),
        "there are several sources": isinstance(data.get("train"), list),
        "answers are compared": t.value_of("method.name") in ("preference", "reward"),
        f"data.on_long is {data.get('on_long')}": data.get("on_long") in ("split", "drop"),
        "data.eval_fraction is set": bool(data.get("eval_fraction")),
    }
    if why := next((reason for reason, holds in reasons.items() if holds), None):
        t.cannot_carry(key, True, f"{why}, so the data is read as a whole and stored, tokenized")
        return
    t.put("data.streaming", True, f"{key}: true")
    rows = (t.read(size, values.positive_int) if size else None) or default
    rows = max(batch, rows // batch * batch)
    t.put("data.buffer", rows, size or f"{t.dialect}'s default", "a multiple of the batch")
