"""Checks a config without network: its values, and model and data if they are available locally."""

from collections.abc import Callable
from pathlib import Path

from intel_ft import assets
from intel_ft.config import Config
from intel_ft.config_sections import DataConfig
from intel_ft.config_sources import Source
from intel_ft.conversations.from_rows import read_conversations
from intel_ft.conversations.preferences import Kind, read_answers
from intel_ft.errors import EnvironmentProblem, MissingPackage
from intel_ft.models.load import (
    check_base,
    description_of,
    load_tokenizer,
    model_folder,
    parameter_count,
)
from intel_ft.models.tokenizer import ENOUGH_FOR_PLAN
from intel_ft.plurals import count_of
from intel_ft.sources.rows import load_rows
from intel_ft.templates.formats import describe_unused
from intel_ft.templates.template import choose_template
from intel_ft.training.distillation import OWN_BASE, check_teacher
from intel_ft.training.model_sizes import count_description
from intel_ft.training.setup import require_installed
from intel_ft.training.start import check_adapter, with_adapter

NOT_CHECKED = "not checked, because it is neither a local path nor in the Hub's cache"


def check_offline(config: Config) -> dict[str, str]:
    """The result for each part, by the part's name; HF_HUB_OFFLINE=1 must be set before.

    Raises UserError for anything wrong with the parts that are available, EnvironmentProblem for a
    tracker, backend or library that is not installed. It does not check whether examples fit
    data.max_length: that takes model and data together, as `validate` without --offline does.
    """
    data, compares = config.data, config.method.compares
    require_installed(config)
    results = {
        "config": f"{config.method.name}, {_length(config)}",
        "model": _unless_absent(config.model.name_or_path, lambda: _model(config), ENOUGH_FOR_PLAN),
        **{name: _source(data.of(source), compares) for name, source in _named(data)},
    }
    if (teacher := config.method.teacher) not in (None, OWN_BASE):
        results["method.teacher"] = _unless_absent(str(teacher), lambda: _teacher(config))
    if source := data.eval:
        split = data.eval_split or data.split
        results["data.eval"] = _source(data.of(Source(path=source, split=split)), compares)
    return results


def _named(data: DataConfig) -> list[tuple[str, Source]]:
    """The sources of data.train by the names of their keys."""
    if len(data.sources) == 1:
        return [("data.train", data.sources[0])]
    return [(f"data.train[{place}]", source) for place, source in enumerate(data.sources)]


def _unless_absent(name: str, check: Callable[[], str], remedy: str = "") -> str:
    try:
        return f"{name}: {check()}"
    except MissingPackage:
        raise
    except EnvironmentProblem:
        return f"{name}: {NOT_CHECKED}{remedy}"


def _length(config: Config) -> str:
    train = config.train
    return count_of(train.max_steps, "step") if train.max_steps else count_of(train.epochs, "epoch")


def _model(config: Config) -> str:
    folder: Path = model_folder(config.model)
    check_base(folder, config.model)
    check_adapter(config.model, load_tokenizer(config.model))
    # Refuses what cannot be adapted.
    count_description(with_adapter(config), description_of(config.model))
    return f"{parameter_count(folder):,} parameters"


def _teacher(config: Config) -> str:
    check_teacher(config, load_tokenizer(config.model))
    return "same vocabulary as the student"


def _source(data: DataConfig, compares: Kind | None) -> str:
    (source,) = data.sources
    return _unless_absent(source.path, lambda: _data(data, source.path, compares))


def _data(data: DataConfig, source: str, compares: Kind | None) -> str:
    if data.streaming:
        return "not read, because it is streamed"
    rows = load_rows(assets.resolve(source), data.split)
    if compares is None:
        read = read_conversations(rows, data)
    else:
        read, _ = read_answers(rows, data, compares)
    # The tokenizer may not be available: this only rejects what no tokenizer supports.
    choose_template(data.template, read.format, True)
    facts = [
        f"{count_of(len(read.conversations), 'example')}, format {read.format} "
        f"({read.format_reason})"
    ]
    if read.unused:
        facts.append(describe_unused(read.unused, read.format))
    if read.bad:
        facts.append(f"{count_of(len(read.bad), 'row')} dropped: cannot be used")
    return "; ".join([*facts, *rows.notes])
