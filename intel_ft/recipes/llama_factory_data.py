"""LLaMA-Factory's datasets, by their names in dataset_info.json, in our terms; called from
recipes.llama_factory.

Fields and defaults: hiyouga/LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py.
"""

import json
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import values as convert
from intel_ft.recipes.translation import Translation, flatten

_ELSEWHERE = {
    "ms_hub_url": "ModelScope is not read: download it and name the file",
    "om_hub_url": "Modelers is not read: download it and name the file",
    "script_url": "dataset scripts are never run: name a file",
    "cloud_file_name": "buckets are not read: download it and name the file",
}
"""Where the rows may be, instead of a file or the Hub."""

_UNSUPPORTED = {
    "subset": "a subset is of a dataset on the Hub",
    "folder": "a folder of a Hub dataset cannot be named: download it",
    "revision": "the newest revision is read",
    "columns.history": "earlier turns are read as messages: put them there",
    "columns.system": "a system prompt is read as the first of messages: put it there",
    "columns.tools": "tool calls are not a format here",
    "tags.observation_tag": "tool calls are not a format here",
    "tags.function_tag": "tool calls are not a format here",
    "columns.*": "this column is not read",
}
_ALPACA = {
    "columns.prompt": ("instruction", "instruction"),
    "columns.query": ("input", "input"),
    "columns.response": ("output", "output"),
}
_SHAREGPT = {
    "columns.messages": ("messages", "conversations"),
    "tags.role_tag": ("role", "from"),
    "tags.content_tag": ("content", "value"),
    "tags.user_tag": ("user", "human"),
    "tags.assistant_tag": ("assistant", "gpt"),
    "tags.system_tag": ("system", "system"),
}
"""What a column or role is called here, and by default there."""


def sources(t: Translation) -> None:
    """data.train and data.eval, and which of their rows. Raises UserError for preference data."""
    folder = t.take("dataset_dir")
    if folder is not None:
        t.meaningless.append(f"dataset_dir: {folder}: data.train says where, or a name on the Hub")
    most = t.read("max_samples", convert.whole)
    for old, new, split in (
        ("dataset", "data.train", "data.split"),
        ("eval_dataset", "data.eval", "data.eval_split"),
    ):
        if name := _name(t, old):
            _source(t, old, str(folder or "data"), name, new)
            _rows(t, f"{old} {name}.", most, split)
    if most and t.got("data.split") is None:
        t.put("data.split", f"train[:{most}]", f"max_samples: {most}")


def _name(t: Translation, old: str) -> str:
    """The first dataset named; empty where there is none."""
    value = t.take(old)
    if value is None:
        return ""
    names = value if isinstance(value, list) else [one.strip() for one in str(value).split(",")]
    for extra in names[1:]:
        t.cannot(old, extra, "one source is read: join them into one file")
    if not names[0]:
        t.off.append(old)
    return str(names[0])


def _source(t: Translation, old: str, folder: str, name: str, new: str) -> None:
    """Where a dataset is. What is said of it becomes keys of `t` such as `dataset NAME.subset`."""
    found = _registered(Path(folder)).get(name)
    if folder == "ONLINE":
        t.put(new, name, f"{old}: {name}")
    elif isinstance(found, dict):
        dataset = f"{old} {name}."
        t.left |= {f"{dataset}{key}": value for key, value in flatten(found).items()}
        if t.flag(f"{dataset}ranking"):
            why = "ranking: only supervised fine-tuning is done here"
            raise UserError(f"{t.origin}: {old}: {name}: {why}")
        _place(t, dataset, Path(folder), name, new)
        _columns(t, dataset)
    else:
        t.put(new, str(Path(folder) / f"{name}.json"), f"{old}: {name}")
        t.cannot(old, name, f"{folder}/dataset_info.json does not tell where it is: check {new}")


def _place(t: Translation, dataset: str, folder: Path, name: str, new: str) -> None:
    """A dataset of the Hub, else a file. What is elsewhere is listed, and `new` stays open."""
    if hub := t.take(f"{dataset}hf_hub_url"):
        subset = t.take(f"{dataset}subset")
        old = f"{dataset}hf_hub_url: {hub}" + (f", subset: {subset}" if subset else "")
        t.put(new, f"{hub}:{subset}" if subset else str(hub), old)
        t.needless(
            {f"{dataset}{key}": "hf_hub_url was taken" for key in (*_ELSEWHERE, "file_name")}
        )
    elif any(f"{dataset}{key}" in t.left for key in _ELSEWHERE):
        t.unsupported({f"{dataset}{key}": why for key, why in _ELSEWHERE.items()})
    else:
        file = str(t.take(f"{dataset}file_name") or name)
        t.put(new, str(folder / file), f"{dataset}file_name: {file}")


def _columns(t: Translation, dataset: str) -> None:
    formatting = t.take(f"{dataset}formatting")
    if formatting is not None:
        t.meaningless.append(f"{dataset}formatting: {formatting}: told from the columns")
    names = _ALPACA if formatting in (None, "alpaca") else _SHAREGPT
    for key, (ours, default) in names.items():
        convert.column(t, f"{dataset}{key}", ours, default)
    t.unsupported({f"{dataset}{key}": why for key, why in _UNSUPPORTED.items()})


def _rows(t: Translation, dataset: str, most: int | None, new: str) -> None:
    """A split, and how many of its rows."""
    split, few = t.take(f"{dataset}split"), t.read(f"{dataset}num_samples", convert.whole)
    given = {f"{dataset}split": split, f"{dataset}num_samples": few, "max_samples": most}
    old = ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None)
    split, counts = str(split or "train"), [count for count in (few, most) if count]
    if counts and "[" in split:
        t.cannot(old, min(counts), "the split is a slice already")
    elif counts:
        split = f"{split}[:{min(counts)}]"
    if old or split != (t.got("data.split") or "train"):  # data.eval_split follows data.split
        note = "the first ones; num_samples are at random there" if few else ""
        t.put(new, split, old or f"{t.dialect}'s default", note)


def _registered(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
