"""`intel-ft validate`."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, show

if TYPE_CHECKING:  # `intel-ft doctor` must start even where pydantic is missing
    from collections.abc import Sequence

    from intel_ft.config import Config
    from intel_ft.decisions import Decision


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Use no network: skip what is not on this machine or in its Hub cache.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Check CONFIG, its model and its data without training.

    Reads every example and builds its loss mask.
    """
    from intel_ft import config as configuration

    settings = configuration.load(config, overrides)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, next
        from intel_ft.recipes.offline import check_offline

        show(check_offline(settings), json)
    else:
        show(_check_inputs(settings), json)


def _check_inputs(settings: "Config") -> dict[str, object]:
    from intel_ft.optional_packages import import_peft

    import_peft()
    from intel_ft.training.setup import read_inputs
    from intel_ft.training.start import with_adapter

    inputs = read_inputs(with_adapter(settings))
    report = inputs.training.report
    others = inputs.validation.report.unused if inputs.validation else ()
    sources = inputs.training.shares()
    return {
        "parameters": inputs.model.sizes.parameters,
        **_facts(inputs.model.decisions),
        "format": report.format,
        "template": report.template,
        "train_examples": report.examples,
        "train_tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "longest": report.longest,
        "not_used": list(dict.fromkeys([*report.unused, *others])),
        "untrained_answers": report.untrained,
        "dropped_rows": report.bad + report.dropped,
        "eval_examples": inputs.validation and inputs.validation.report.examples,
        **({"sources": sources} if len(sources) > 1 else {}),
    }


def _facts(decisions: "Sequence[Decision]") -> dict[str, str]:
    """The decisions as lines of the report; those of one name in one line."""
    facts: dict[str, str] = {}
    for decision in decisions:
        name = decision.name.lower().replace(" ", "_")
        text = f"{decision.value} ({decision.reason})"
        facts[name] = f"{facts[name]}; {text}" if name in facts else text
    return facts
