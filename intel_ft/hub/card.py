"""The model card: its template filled with what is on record, and the check of its metadata."""

import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from intel_ft import __version__
from intel_ft.artifacts.provenance import StartAdapter
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.errors import UserError
from intel_ft.hub.metadata import name_of, relation, selected_row
from intel_ft.hub.records import Records
from intel_ft.tables import Table, escape_markdown
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import SpecialTokens
from intel_ft.templates.template import Template, renderer

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

# label, section of config.yaml, key; settings that a method does not have are left out
_SETTINGS = (
    ("method", "method", "name"),
    ("LoRA rank r", "method", "r"),
    ("LoRA alpha", "method", "alpha"),
    ("LoRA dropout", "method", "dropout"),
    ("target modules", "method", "target_modules"),
    ("DoRA", "method", "use_dora"),
    ("rank-stabilized LoRA", "method", "use_rslora"),
    ("new tokens", "model", "add_tokens"),
    ("new special tokens", "model", "add_special_tokens"),
    ("training data", "data", "train"),
    ("validation data", "data", "eval"),
    ("maximum tokens per example", "data", "max_length"),
    ("loss on", "data", "loss_on"),
    ("epochs", "train", "epochs"),
    ("maximum steps", "train", "max_steps"),
    ("examples per step", "train", "global_batch_size"),
    ("optimizer", "train", "optimizer"),
    ("learning rate", "train", "learning_rate"),
    ("learning rate schedule", "train", "scheduler"),
    ("warmup ratio", "train", "warmup_ratio"),
    ("weight decay", "train", "weight_decay"),
    ("maximum gradient norm", "train", "max_grad_norm"),
    ("seed", "train", "seed"),
)


def write_card(
    artifact: Artifact, records: Records, data: "ModelCardData", repo: str, files: set[str]
) -> str:
    """The whole README.md for `repo`; `files` are the paths that are uploaded with it."""
    base, export = str(data.base_model), records.export or {}
    template = artifact.template or "auto"
    own = read_json(artifact.folder / "tokenizer_config.json").get("chat_template")
    has_template = "chat_template.jinja" in files or bool(own)
    chats = template == "tokenizer" or (template == "auto" and has_template)
    recipe = export.get("recipe") or {}
    link = (
        f"[{escape_markdown(base)}](https://huggingface.co/{quote(base)})"
        if "/" in base
        else _code(base)
    )
    config = (records.training or {}).get("config", {})
    card: str = _template().render(
        front_matter=Markup(data.to_yaml()),
        name=name_of(repo),
        repo=repo,
        files=files,
        kind=artifact.kind,
        base=Markup(link),
        trained=relation(artifact, records) != "quantized",
        version=__version__,
        adapters=export.get("adapters") or [],
        adapter_rows=_adapter_rows(export),
        chats=chats,
        genai_arguments=Markup(
            '"Hello", max_new_tokens=100'
            if chats
            else "prompt, max_new_tokens=100, apply_chat_template=False"
        ),
        template=template,
        system_prompt=artifact.system_prompt,
        prompt_form=_prompt_form(artifact, template),
        training=records.training,
        training_rows=_training_rows(records, artifact.start_adapter),
        answers_only=config.get("data", {}).get("loss_on") == "completion",
        weights=records.weights,
        weight_rows=_weight_rows(records),
        recipe=recipe if recipe.get("used") else None,
        calibration=export.get("calibration"),
        package_rows=_package_rows(records),
        cpu=export.get("cpu"),
        **_gate(records),
    )
    return card


def check_card(text: str) -> None:
    """Read the card as the Hub's library does. Raises UserError where its metadata is invalid.

    The Hub checks the rest, such as its list of licenses, before the upload begins.
    """
    from huggingface_hub import ModelCard, ModelCardData

    try:
        data: Any = ModelCard(text).data
        values = data.to_dict()
        ModelCardData(**values)
    except ImportError:
        raise
    except Exception as error:  # YAML's errors, ValueError, TypeError: any text may come in
        raise UserError(
            f"the card's front matter is not valid: {' '.join(str(error).split())}"
        ) from None
    for key in ("license", "pipeline_tag"):
        if not isinstance(values.get(key), str):
            raise UserError(f"the card's front matter has no {key}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", values["license"]):
        raise UserError(
            f"license {values['license']!r}: give its id on the Hub, such as apache-2.0"
        )


def _template() -> Any:
    """The template; what it prints is escaped as Markdown unless a filter made it Markup."""
    environment = Environment(
        loader=PackageLoader("intel_ft.hub", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
    )
    environment.filters |= {
        "number": _number,
        "table": lambda rows, *columns: Markup(Table(columns, rows).markdown()),
        "code": _code,
        "fenced": _fenced,
        "verbatim": lambda text: Markup(" ".join(str(text).splitlines())),
    }
    return environment.get_template("card.md.jinja")


def _code(text: str) -> Markup:
    """`text` as code within a line."""
    line = " ".join(text.splitlines())
    ticks = _ticks(line, at_least=1)
    space = " " if "`" in line else ""
    return Markup(f"{ticks}{space}{line}{space}{ticks}")


def _fenced(text: str) -> Markup:
    """`text` as a code block, line by line as it is."""
    ticks = _ticks(text, at_least=3)
    return Markup(f"{ticks}text\n{text}\n{ticks}")


def _ticks(text: str, at_least: int) -> str:
    """More backticks than stand together in `text`, so that it cannot end the code."""
    return "`" * max(at_least, 1 + max(map(len, re.findall(r"`+", text)), default=0))


def _number(value: Any) -> str:
    """Four significant digits of a fraction, all digits of an integer, other values as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _percent(share: float) -> str:
    """A share as a percentage with three significant digits."""
    return f"{100 * share:.3g} %"


def _prompt_form(artifact: Artifact, template: str) -> str:
    """A prompt as it was written in training; empty where a chat template writes it."""
    if template in ("auto", "tokenizer"):
        return ""
    config = read_json(artifact.folder / "tokenizer_config.json")
    bos, eos = (_token(config.get(name)) for name in ("bos_token", "eos_token"))
    special_tokens = SpecialTokens(bos or None, eos, adds_bos=False, added=())
    tokenizer: Any = None  # these templates need none
    render = renderer(cast(Template, template), tokenizer, special_tokens, artifact.system_prompt)
    spans = render(Conversation((Message("user", "{question}"), Message("assistant", "x"))))
    end = next(i for i, span in enumerate(spans) if span.kind == "completion")
    return "".join(span.text for span in spans[:end])


def _token(value: Any) -> str:
    """A special token's text; older tokenizers write a mapping."""
    return str(value.get("content", "") if isinstance(value, dict) else value or "")


def _start_rows(start: StartAdapter | None) -> list[tuple[str, str]]:
    """The adapter that training started from."""
    if start is None:
        return []
    how = "merged into the base first" if start.mode == "merge" else "trained further"
    return [("starting adapter", f"{start.name}, {how}")]


def _training_rows(records: Records, start: StartAdapter | None) -> list[tuple[str, str]]:
    training = records.training
    if training is None:
        return _start_rows(start)
    config, environment = training["config"], records.environment or {}
    rows = [(label, config.get(section, {}).get(key)) for label, section, key in _SETTINGS]
    rows = [(label, value) for label, value in rows if value is not False and value != []]
    if (method := config.get("method", {})).get("name") == "preference":
        rows.insert(1, ("preference loss", method.get("loss")))
    rows += [
        *_start_rows(start),
        *training.get("decisions", {}).items(),  # exports of earlier versions have none
        ("steps taken", training["steps"]),
        ("tokens trained on", training["tokens"]),
        ("supervised tokens", training["supervised_tokens"]),
        ("last training loss, nats per token", training["train_loss"]),
        ("best validation loss, nats per token", training["eval_loss"]),
        ("experts without a token since the run's last start", _unused_experts(training)),
        ("CPU", environment.get("cpu")),
        ("instruction sets", environment.get("isa")),
        ("ranks", environment.get("ranks")),
    ]
    return [(label, _number(value)) for label, value in rows if value is not None]


def _unused_experts(training: dict[str, Any]) -> str | None:
    """How many of a mixture's experts got no token; None for other models."""
    experts = training.get("experts_without_tokens")
    return None if experts is None else f"{experts[0]:,} of {experts[1]:,}"


def _weight_rows(records: Records) -> list[tuple[str, str]]:
    """How the weights are stored, as the IR itself says; empty where there is no IR."""
    weights = records.weights
    if weights is None:
        return []
    rows = [("bits of most weights", _number(weights.bits))]
    if weights.mode:
        rows.append(("mode", weights.mode))
    if weights.group_size is not None:
        per_channel = weights.group_size == -1
        size = "one scale per channel" if per_channel else _number(weights.group_size)
        rows.append(("group size", size))
    ratio = ((records.export or {}).get("quantization") or {}).get("ratio")
    if ratio is not None:
        rows.append(("share of layers with these bits", _percent(ratio)))
    total = sum(weights.elements.values())
    return rows + [
        (f"values stored as {kind}", f"{_number(count)} ({_percent(count / total)})")
        for kind, count in sorted(weights.elements.items(), key=lambda item: -item[1])
    ]


def _adapter_rows(export: dict[str, Any]) -> list[tuple[str, ...]]:
    """The adapters that are applied at run time, and how faithfully each runtime applies them."""
    return [
        (
            adapter["name"],
            adapter["file"],
            *(_number(adapter[key]) for key in ("r", "lora_alpha", "alpha")),
            *(_percent(adapter[key]) for key in ("top1", "top1_without")),
        )
        for adapter in export.get("adapters") or []
    ]


# title, key of a row of the gate's table, how to write it
_GATE_COLUMNS = (
    ("candidate", "name", str),
    ("MB", "megabytes", _number),
    ("perplexity", "perplexity", _number),
    ("increase", "ppl_increase", _percent),
    ("KL, nats", "kl", _number),
    ("same token", "agreement", _percent),
    ("exact match", "exact_match", _percent),
    ("first token, ms", "first_token_ms", _number),
    ("token/s", "tokens_per_s", _number),
)


def _gate(records: Records) -> dict[str, Any]:
    """What the gate measured of every candidate, under the template's names."""
    gate = (records.export or {}).get("gate")
    if not gate:
        return {"gate": None}
    columns = [
        column
        for column in _GATE_COLUMNS
        if any(row.get(column[1]) is not None for row in gate["table"])
    ]
    reference, limits = gate["reference"], gate["limits"]
    measured = [{"name": f"reference ({reference['dtype']})", **reference}, *gate["table"]]
    required = []
    if (most := limits.get("max_ppl_increase")) is not None:
        required.append(f"a perplexity increase of at most {_percent(most)}")
    if (least := limits.get("min_agreement")) is not None:
        required.append(f"the same token at {_percent(least)} of positions or more")
    return {
        "gate": gate,
        "gate_choice": selected_row(records)["name"],
        "gate_limits": required,
        "gate_columns": [title for title, _, _ in columns],
        "gate_rows": [
            tuple(
                "" if (value := row.get(key)) is None else str(write(value))
                for _, key, write in columns
            )
            for row in measured
        ],
    }


def _package_rows(records: Records) -> list[tuple[str, str]]:
    packages = {
        **(records.environment or {}).get("packages", {}),
        **(records.export or {}).get("packages", {}),
    }
    return [(name, str(version)) for name, version in sorted(packages.items()) if version]
