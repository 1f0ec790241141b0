"""Which template a prompt to a model is written in; called from cli (generate, chat, eval)."""

from typing import Any

from intel_ft.artifacts.resolve import Artifact
from intel_ft.data.templates import Template, choose


def prompt_template(
    artifact: Artifact, tokenizer: Any, requested: str = "auto"
) -> tuple[Template, str]:
    """The template and the reason for it: what the user asks for, else what the model was trained
    with, else its tokenizer's own chat template, else chatml.

    Raises UserError if "tokenizer" is asked for and the tokenizer has no chat template.
    """
    trained = artifact.template or "auto"
    if requested == "auto" and trained != "auto":
        template, _ = choose(trained, "messages", bool(tokenizer.chat_template))
        return template, "the model was trained with it"
    return choose(requested, "messages", bool(tokenizer.chat_template))
