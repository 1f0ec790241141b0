"""Translates LLaMA-Factory's datasets, which are named in dataset_info.json.

Fields and defaults: hiyouga/LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py.
"""

import json
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.recipes import corpus, datasets
from intel_ft.recipes import values as convert
from intel_ft.recipes.preferences import is_preference
from intel_ft.recipes.translation import Translation, flatten

_ELSEWHERE = {
    "ms_hub_url": "ModelScope is not supported: download the data and name the file",
    "om_hub_url": "Modelers is not supported: download the data and name the file",
    "script_url": "dataset scripts are never run: name a file",
}
"""Sources of rows other than a file or the Hub."""

_UNSUPPORTED = {
    "subset": "only datasets on the Hub have subsets",
    "folder": "only datasets on the Hub have folders",
    "revision": "only datasets on the Hub have revisions",
    "columns.*": "this column is not read",
}
_ALPACA = {
    "columns.prompt": ("instruction", "instruction"),
    "columns.query": ("input", "input"),
    "columns.response": ("output", "output"),
    "columns.history": ("history", None),
    "columns.system": ("system", None),
    "columns.tools": ("tools", None),
}
_SHAREGPT = {
    "columns.messages": ("messages", "conversations"),
    "columns.system": ("system", None),
    "columns.tools": ("tools", None),
}
"""Name of each column here, and LLaMA-Factory's default name; None where it reads none then."""


def _names_of(role: str) -> tuple[str, ...]:
    return tuple(name for name, own in convert.ROLES.items() if own == role)


_TAGS = {
    "tags.role_tag": (("role", "from"), "from"),
    "tags.content_tag": (("content", "value"), "value"),
    "tags.user_tag": (("user", "human"), "human"),
    "tags.assistant_tag": (("assistant", "gpt"), "gpt"),
    "tags.system_tag": (("system", "developer"), "system"),
    "tags.observation_tag": (_names_of("tool"), "observation"),
    "tags.function_tag": (("function_call", "tool_call"), "function_call"),
}
"""Names of roles, and of the keys of turns, that are read as they are; LLaMA-Factory's default."""

_MEDIA = ("images", "videos", "audios")


def sources(t: Translation, *, pretraining: bool = False) -> None:
    """Translate data.train and data.eval with their splits; UserError for preference data.

    pretraining: of stage pt, which reads the prompt's column as a document.
    """
    folder = t.take("dataset_dir")
    if folder is not None:
        t.not_needed.append(f"dataset_dir: {folder}: it is part of the path in data.train")
    most = t.read("max_samples", convert.positive_int)
    names, found = _names(t, "dataset"), []
    for number, name in enumerate(names):
        place = f"data.train[{number}]" if len(names) > 1 else "data"
        with datasets.source(t, place) as one:
            _source(t, "dataset", str(folder or "data"), name, "data.train", pretraining)
            _rows(t, f"dataset {name}.", most, "data.split")
            found.append(one)
    if pretraining:
        corpus.as_text(t, "stage: pt")
    _mix(t, found)
    datasets.put_sources(t, "dataset", found)
    others = _names(t, "eval_dataset")
    for name in others[:1]:
        _source(t, "eval_dataset", str(folder or "data"), name, "data.eval", pretraining)
        _rows(t, f"eval_dataset {name}.", most, "data.eval_split")
    for extra in others[1:]:
        t.cannot_carry("eval_dataset", extra, "only one dataset is evaluated: join them")
    if most and not names and t.value_of("data.split") is None:
        t.put("data.split", f"train[:{most}]", f"max_samples: {most}")


def _names(t: Translation, old: str) -> list[str]:
    """The datasets named, in a list or separated by commas."""
    value = t.take(old)
    named = value if isinstance(value, list) else str(value or "").split(",")
    names = [str(one).strip() for one in named if str(one).strip()]
    if value is not None and not names:
        t.off.append(old)
    return names


def _mix(t: Translation, found: list[dict[str, Any]]) -> None:
    """How several datasets are mixed: one after another, or with a probability each."""
    strategy = str(t.left.get("mix_strategy") or "concat")
    if strategy == "concat" or len(found) < 2:
        reason = "each example of each dataset is trained on once per epoch"
        t.take_not_needed({"mix_strategy": reason, "interleave_probs": reason})
        return
    t.take("mix_strategy")
    given = t.take("interleave_probs")
    shares = given if isinstance(given, list) else str(given or "").split(",")
    try:
        weights = [convert.number(share) for share in shares if share] if given else []
        weights = weights or [1.0] * len(found)
        if len(weights) != len(found) or min(weights) <= 0:
            raise ValueError(f"{len(found)} probabilities above 0 are needed")
    except ValueError as error:
        t.cannot_carry("interleave_probs", given, str(error))
        return
    for number, (one, weight) in enumerate(zip(found, weights, strict=True)):
        one["weight"] = weight
        t.mapped.append(f"interleave_probs: {weight:g} -> data.train[{number}].weight: {weight:g}")
    ends = "one dataset is" if strategy == "interleave_under" else "all datasets are"
    t.cannot_carry(
        "mix_strategy",
        strategy,
        f"{t.dialect} ends an epoch when {ends} used up; here it has as many examples as all"
        " datasets together: check train.epochs, or set train.max_steps",
    )


def _source(t: Translation, old: str, folder: str, name: str, new: str, pretraining: bool) -> None:
    """Translate where a dataset is; its entry becomes keys of `t` such as `dataset NAME.subset`."""
    entry = _registered(Path(folder)).get(name)
    if folder == "ONLINE":
        t.put(new, name, f"{old}: {name}")
    elif isinstance(entry, dict):
        dataset = f"{old} {name}."
        t.left |= {f"{dataset}{key}": value for key, value in flatten(entry).items()}
        if t.flag(f"{dataset}ranking") and not is_preference(t):
            reason = "ranking: such data is for stage: dpo"
            raise UserError(f"{t.origin}: {old}: {name}: {reason}")
        _place(t, dataset, Path(folder), name, new)
        if pretraining:
            _document(t, dataset)
        else:
            _columns(t, dataset)
    else:
        repo = folder.removeprefix("REMOTE:")
        place = Path(folder) if repo == folder else f"hf://datasets/{repo}"
        t.put(new, f"{place}/{name}.json", f"{old}: {name}")
        t.cannot_carry(
            old, name, f"{folder}/dataset_info.json does not say where the data is: check {new}"
        )


def _place(t: Translation, dataset: str, folder: Path, name: str, new: str) -> None:
    """A Hub dataset or a file. Other sources are listed, and `new` is left unset."""
    if hub := t.take(f"{dataset}hf_hub_url"):
        keys = ("subset", "revision", "folder")
        given = {key: value for key in keys if (value := t.take(f"{dataset}{key}")) is not None}
        at = f"{hub}@{given['revision']}" if "revision" in given else str(hub)
        if "folder" in given:
            at = f"hf://datasets/{at}/{given['folder']}"
            if "subset" in given:
                t.cannot_carry(f"{dataset}subset", given["subset"], "folder names what is read")
        elif "subset" in given:
            at = f"{at}:{given['subset']}"
        old = "".join(f", {key}: {value}" for key, value in given.items())
        t.put(new, at, f"{dataset}hf_hub_url: {hub}{old}")
        others = (*_ELSEWHERE, "file_name", "cloud_file_name")
        t.take_not_needed({f"{dataset}{key}": "hf_hub_url takes precedence" for key in others})
    elif any(f"{dataset}{key}" in t.left for key in _ELSEWHERE):
        t.take_unsupported({f"{dataset}{key}": why for key, why in _ELSEWHERE.items()})
    elif url := t.take(f"{dataset}cloud_file_name"):
        t.put(new, str(url), f"{dataset}cloud_file_name: {url}")
    else:
        file = str(t.take(f"{dataset}file_name") or name)
        t.put(new, str(folder / file), f"{dataset}file_name: {file}")


def _document(t: Translation, dataset: str) -> None:
    """A dataset of stage pt: one column of text."""
    formatting = t.take(f"{dataset}formatting") or "alpaca"
    if formatting != "alpaca":
        reason = "stage pt has no turns here: give a dataset with a column of text"
        t.cannot_carry(f"{dataset}formatting", formatting, reason)
    convert.column(t, f"{dataset}columns.prompt", "text", "instruction")
    reason = "stage pt reads the prompt's column"
    t.take_unsupported({f"{dataset}columns.*": reason, f"{dataset}tags.*": reason})
    t.take_unsupported({f"{dataset}{key}": why for key, why in _UNSUPPORTED.items()})


def _columns(t: Translation, dataset: str) -> None:
    for key in _MEDIA:
        if (column := t.take(f"{dataset}columns.{key}")) is not None:
            raise UserError(f"{t.origin}: {dataset}columns.{key}: {column}: only text is supported")
    for key in ("columns.kto_tag", "columns.chosen", "columns.rejected"):
        if (column := t.take(f"{dataset}{key}")) is not None:
            if not is_preference(t):
                reason = "only for stage: dpo or kto"
                raise UserError(f"{t.origin}: {dataset}{key}: {column}: {reason}")
            if (name := key.partition(".")[2]) != column:
                t.name_column(name, str(column), f"{dataset}{key}")
    formatting = t.take(f"{dataset}formatting") or "alpaca"
    if formatting not in ("alpaca", "sharegpt", "openai"):
        t.cannot_carry(f"{dataset}formatting", formatting, "convert the data to messages")
        return
    alpaca = formatting == "alpaca"
    t.put("data.format", "alpaca" if alpaca else "messages", f"{dataset}formatting: {formatting}")
    openai = _SHAREGPT | {"columns.messages": ("messages", "messages")}
    names = {"alpaca": _ALPACA, "sharegpt": _SHAREGPT, "openai": openai}[formatting]
    for key, (column, default) in names.items():
        if default is not None or f"{dataset}{key}" in t.left:
            convert.column(t, f"{dataset}{key}", column, default)
    if alpaca:
        _join(t, dataset)
    else:
        for key, (known, default) in _TAGS.items():
            convert.name_in_turns(t, f"{dataset}{key}", known, default)
    t.take_unsupported({f"{dataset}{key}": why for key, why in _UNSUPPORTED.items()})


def _join(t: Translation, dataset: str) -> None:
    """An instruction with an input: LLaMA-Factory joins them with a line break, in all templates.

    With its template alpaca, the model then sees another prompt than with ours, which has a heading
    and another first sentence where there is an input.
    """
    if t.measured is not None and not t.measured.with_input:
        t.not_needed.append(f"{dataset}columns.query: no example of this data has an input")
    else:
        t.cannot_carry(
            f"{dataset}columns.query",
            "input",
            f"{t.dialect} joins instruction and input with one line break; here it is an empty line"
            " and, with data.template alpaca, the heading ### Input: of Stanford's template: to"
            " keep its prompts, join the two columns in the data",
        )


def _rows(t: Translation, dataset: str, most: int | None, new: str) -> None:
    """A split, and how many of its rows."""
    split, few = t.take(f"{dataset}split"), t.read(f"{dataset}num_samples", convert.positive_int)
    given = {f"{dataset}split": split, f"{dataset}num_samples": few, "max_samples": most}
    old = ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None)
    split, counts = str(split or "train"), [count for count in (few, most) if count]
    if counts and "[" in split:
        t.cannot_carry(old, min(counts), "the split is already a slice")
    elif counts:
        split = f"{split}[:{min(counts)}]"
    if old or split != (t.value_of("data.split") or "train"):  # data.eval_split follows data.split
        note = "the first rows; LLaMA-Factory takes num_samples at random" if few else ""
        t.put(new, split, old or f"{t.dialect}'s default", note)


def _registered(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
