"""`intel-ft validate`."""

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, show
from intel_ft.errors import UserError

if TYPE_CHECKING:  # `intel-ft doctor` must start even where pydantic is missing
    from collections.abc import Sequence

    from intel_ft.config import Config
    from intel_ft.data.shown import ShownExample
    from intel_ft.decisions import Decision
    from intel_ft.training.setup import Inputs


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
    examples: Annotated[
        int,
        typer.Option("--show", min=0, help="Print this many examples and mark what is trained on."),
    ] = 0,
    json: Json = False,
) -> None:
    """Check CONFIG, its model and its data without training.

    Reads every example, builds its loss mask, and compares it with the tokenizer's chat template.
    """
    from intel_ft import config as configuration

    settings = configuration.load(config, overrides)
    if offline and examples:
        raise UserError(
            "--show needs the tokenizer, which --offline does not load: use one of them"
        )
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported, next
        from intel_ft.recipes.offline import check_offline

        show(check_offline(settings), json)
    else:
        _check_online(settings, examples, json)


def _check_online(settings: "Config", examples: int, json: bool) -> None:
    """Print what was found, and some examples."""
    from intel_ft.cli.show_examples import print_examples

    facts, shown = _check_inputs(settings, examples)
    if json:
        as_json = {"examples": list(map(dataclasses.asdict, shown))} if examples else {}
        show({**facts, **as_json}, json)
    else:
        show(facts, json)
        print_examples(shown)


def _check_inputs(
    settings: "Config", examples: int
) -> "tuple[dict[str, object], list[ShownExample]]":
    from intel_ft.optional_packages import import_peft

    import_peft()
    from intel_ft.data.shown import compare_with_template, shown_examples
    from intel_ft.training.setup import read_inputs
    from intel_ft.training.start import with_adapter

    inputs = read_inputs(with_adapter(settings))
    report = inputs.training.report
    compared = compare_with_template(settings.data, inputs.tokenizer, settings.method.compares)
    others = inputs.validation.report.unused if inputs.validation else ()
    sources = inputs.training.shares()
    facts: dict[str, object] = {
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
        "context_only_answers": report.context_only,
        "separated_conversations": report.separated,
        "dropped_rows": report.bad + report.dropped,
        "unlike_chat_template": compared and compared.unlike,
        "first_unlike": (compared and compared.first) or None,
        "eval_examples": inputs.validation and inputs.validation.report.examples,
        "eval_examples_in_train": inputs.shared and inputs.shared.prompts,
        **_shared_prefixes(with_adapter(settings), inputs),
        **({"sources": sources} if len(sources) > 1 else {}),
    }
    return facts, shown_examples(inputs.training.examples, inputs.tokenizer, examples)


def _shared_prefixes(settings: "Config", inputs: "Inputs") -> dict[str, object]:
    """What of the examples' tokens a step computes once for several examples."""
    from intel_ft.training.decide import make_plan, total_steps
    from intel_ft.training.shared_prefixes import shared_prefix_share, why_not_shared

    model, examples = inputs.model, inputs.training.examples
    why_not = why_not_shared(settings, model.description, packed=model.sizes.packs)
    if why_not is not None:
        return {"shared_prefix_share": 0.0, "no_shared_prefixes": why_not}
    plan = make_plan(
        settings,
        examples.lengths,
        examples.supervised_counts,
        model.cost,
        packed=True,
        parts=inputs.training.parts,
        shared=examples,
        examples=examples,
    )
    share = shared_prefix_share(plan, total_steps(settings.train, plan))
    return {"shared_prefix_share": round(share, 4)}


def _facts(decisions: "Sequence[Decision]") -> dict[str, str]:
    """The decisions as lines of the report; those of one name in one line."""
    facts: dict[str, str] = {}
    for decision in decisions:
        name = decision.name.lower().replace(" ", "_")
        text = f"{decision.value} ({decision.reason})"
        facts[name] = f"{facts[name]}; {text}" if name in facts else text
    return facts
