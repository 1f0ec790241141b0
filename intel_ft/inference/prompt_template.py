"""Choose the template that prompts to a model are written in."""

from typing import Any

from intel_ft.artifacts.resolve import Artifact
from intel_ft.templates.template import Template, choose_template


def prompt_template(
    artifact: Artifact, tokenizer: Any, requested: str = "auto"
) -> tuple[Template, str]:
    """The template, and the reason for it.

    It is the requested one, else the one the model was trained with, else the tokenizer's chat
    template, else chatml. Raises UserError if "tokenizer" is requested and the tokenizer has no
    chat template.
    """
    trained = artifact.template or "auto"
    if requested == "auto" and trained != "auto":
        template, _ = choose_template(trained, "messages", bool(tokenizer.chat_template))
        return template, "the model was trained with it"
    return choose_template(requested, "messages", bool(tokenizer.chat_template))
