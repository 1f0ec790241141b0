"""The model card: front matter, and a text of which every number is on record; called from
hub.push.
"""

import re
from typing import TYPE_CHECKING, Any, cast

from intel_ft import __version__
from intel_ft.artifacts.resolve import Artifact, read_json
from intel_ft.data.formats import Conversation, Message
from intel_ft.data.spans import Marks
from intel_ft.data.templates import Template, renderer
from intel_ft.errors import UserError
from intel_ft.hub.card_export import adapters, quality, quantization
from intel_ft.hub.card_table import number, table
from intel_ft.hub.metadata import name_of, relation
from intel_ft.hub.records import Records
from intel_ft.hub.usage import usage

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

# label, section of config.yaml, key; what a method does not have is left out
_SETTINGS = (
    ("method", "method", "name"),
    ("rank r", "method", "r"),
    ("alpha", "method", "alpha"),
    ("LoRA dropout", "method", "dropout"),
    ("target modules", "method", "target_modules"),
    ("DoRA", "method", "use_dora"),
    ("rank-stabilized", "method", "use_rslora"),
    ("training data", "data", "train"),
    ("held-out data", "data", "eval"),
    ("longest example, tokens", "data", "max_length"),
    ("loss on", "data", "loss_on"),
    ("epochs", "train", "epochs"),
    ("steps at most", "train", "max_steps"),
    ("examples a step", "train", "global_batch_size"),
    ("optimizer", "train", "optimizer"),
    ("learning rate", "train", "learning_rate"),
    ("schedule", "train", "scheduler"),
    ("warm-up, share of steps", "train", "warmup_ratio"),
    ("weight decay", "train", "weight_decay"),
    ("largest gradient norm", "train", "max_grad_norm"),
    ("seed", "train", "seed"),
)


def write_card(
    artifact: Artifact, records: Records, data: "ModelCardData", repo: str, files: set[str]
) -> str:
    """The whole README.md for `repo`; `files` are the paths that go up beside it."""
    base = str(data.base_model)
    sections = [
        f"# {name_of(repo)}",
        _opening(artifact, records, base),
        usage(artifact, repo, files, (records.export or {}).get("adapters") or []),
        _prompts(artifact),
        _training(records),
        quantization(records),
        adapters(records),
        quality(records, files),
        _limits(artifact, records),
        _made_with(records),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def check_card(text: str) -> None:
    """Read the card as the Hub's library does. Raises UserError where its metadata is not valid.

    What only the Hub can tell (its list of licenses, say) it says before the upload begins.
    """
    from huggingface_hub import ModelCard, ModelCardData

    try:
        data: Any = ModelCard(text).data
        values = data.to_dict()
        ModelCardData(**values)
    except Exception as error:  # YAML's errors, ValueError, TypeError: whatever a text brings
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


def _opening(artifact: Artifact, records: Records, base: str) -> str:
    link = f"[{base}](https://huggingface.co/{base})" if "/" in base else f"`{base}`"
    trained = relation(artifact, records) != "quantized"
    what = {
        "adapter": f"An adapter for {link}",
        "merged": f"{link}, fine-tuned, in bf16 safetensors with the adapter merged",
        "openvino": f"{link}{', fine-tuned,' if trained else ''} as an OpenVINO model",
    }[artifact.kind]
    if records.weights:
        what += f" with {records.weights.bits}-bit weights"
    return f"{what}. Made with intel_ft {__version__}."


def _prompts(artifact: Artifact) -> str:
    """How a question is written down, where no chat template does it."""
    template = artifact.template or "auto"
    title = "## Prompts\n\n"
    if template == "tokenizer":
        text = "It was trained with the tokenizer's own chat template, which the runtimes apply."
        if artifact.system_prompt:
            text += f" Its system prompt in training:\n\n{_fenced(artifact.system_prompt)}"
        return title + text
    if template == "auto":
        return ""
    config = read_json(artifact.folder / "tokenizer_config.json")
    bos, eos = (_token(config.get(name)) for name in ("bos_token", "eos_token"))
    marks = Marks(bos or None, eos, adds_bos=False, added=())
    none: Any = None  # a written template asks nothing of a tokenizer
    render = renderer(cast(Template, template), none, marks, artifact.system_prompt)
    spans = render(Conversation((Message("user", "{question}"), Message("assistant", "x"))))
    end = next(i for i, span in enumerate(spans) if span.kind == "completion")
    return (
        f"{title}It was trained on prompts of this form (`{template}`). `intel-ft generate` and "
        "`intel-ft chat` write them; elsewhere write them yourself:\n\n"
        + _fenced("".join(span.text for span in spans[:end]))
    )


def _token(value: Any) -> str:
    """A special token's text; older tokenizers write a mapping."""
    return str(value.get("content", "") if isinstance(value, dict) else value or "")


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _training(records: Records) -> str:
    training = records.training
    if training is None:
        return ""
    config = training["config"]
    rows = [
        (label, value)
        for label, section, key in _SETTINGS
        if (value := config.get(section, {}).get(key)) is not None and value is not False
    ]
    rows += [
        ("steps taken", training["steps"]),
        ("tokens trained on", training["tokens"]),
        ("of which supervised", training["supervised_tokens"]),
        ("last training loss, nats a token", training["train_loss"]),
        ("best held-out loss, nats a token", training["eval_loss"]),
    ]
    if environment := records.environment:
        rows += [
            ("CPU", environment.get("cpu")),
            ("instruction sets", environment.get("isa")),
            ("ranks", environment.get("ranks")),
        ]
    shown = [(label, number(value)) for label, value in rows if value is not None]
    return "## Training\n\n" + table(("", ""), shown)


def _limits(artifact: Artifact, records: Records) -> str:
    lines = [
        "It inherits the base model's limits and biases; read its card first.",
        "Nothing here measures safety, bias or factual truth: check its answers before relying on "
        "them.",
    ]
    if records.training is None:
        lines.append("How it was trained is not on record here.")
    elif records.training["eval_loss"] is None:
        lines.append("No held-out loss was measured in training.")
    if artifact.kind == "openvino" and not (records.export or {}).get("gate"):
        lines.append("Its quality after conversion was not measured against the original.")
    if (records.training or {}).get("config", {}).get("data", {}).get("loss_on") == "completion":
        lines.append("It was trained on answers only, in the form of prompts shown above.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _made_with(records: Records) -> str:
    export = records.export or {}
    packages = {**(records.environment or {}).get("packages", {}), **export.get("packages", {})}
    if not packages:
        return ""
    rows = [(name, str(version)) for name, version in sorted(packages.items()) if version]
    return "## Versions\n\n" + table(("package", "version"), rows)
