"""Compare chat templates with what intel_ft trains, and print a Markdown table of differences.

Each source is a chat template (a .jinja file), a folder of them, or a model (a folder with a
tokenizer, or a Hub id). A template alone is used with the shipped byte-level tokenizer, to which
the control tokens that it writes are added; so spaces of SentencePiece tokenizers are compared for
models only. Templates come with TRL (`pip download trl`: trl/chat_templates), vLLM (examples) and
llama.cpp (models/templates).

    python tools/chat_template_table.py trl/chat_templates models/templates Qwen/Qwen3-0.6B
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from intel_ft.config_sections import ModelConfig
from intel_ft.conversations.tools import calls_text, tools_text
from intel_ft.errors import UserError
from intel_ft.models.tokenizer import load_tokenizer
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template_check import template_notes

QUESTION, AGAIN = Message("user", "What is 2+2?"), Message("user", "And 3+3?")
ANSWER, ANOTHER = Message("assistant", "It is 4."), Message("assistant", "It is 6.")
THOUGHT = Message("assistant", "<think>\neasy\n</think>\n\nIt is 4.")
LATER_THOUGHT = Message("assistant", "<think>\nadd them\n</think>\n\nIt is 6.")
_PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"type": "number", "description": "One."},
        "b": {"type": "string", "description": "Other."},
    },
    "required": ["a", "b"],
}
TOOLS = tools_text("tools", [{"name": "add", "description": "Adds.", "parameters": _PARAMETERS}])
_ADD = {"id": "call00001", "name": "add", "arguments": {"a": 2, "b": "two\n"}}
CALL = Message("assistant", "", calls=calls_text("calls", [_ADD]))
CALLS = Message("assistant", "", calls=calls_text("calls", [_ADD, {**_ADD, "id": "call00002"}]))
THINKING_CALL = replace(CALL, content="<think>\nadd them\n</think>\n\n")
RESULT = Message("tool", '{"sum": 4}', name="add", call_id="call00001")
CONVERSATIONS = {
    "one answer": Conversation((QUESTION, ANSWER)),
    "two answers": Conversation((QUESTION, ANSWER, AGAIN, ANOTHER)),
    "system message": Conversation((Message("system", "Be brief."), QUESTION, ANSWER)),
    "a thought": Conversation((QUESTION, THOUGHT)),
    "two thoughts": Conversation((QUESTION, THOUGHT, AGAIN, LATER_THOUGHT)),
    "a tool": Conversation((QUESTION, CALL, RESULT, ANSWER), tools=TOOLS),
    "parallel calls": Conversation((QUESTION, CALLS, RESULT, RESULT, ANSWER), tools=TOOLS),
    "a tool and thoughts": Conversation((QUESTION, THINKING_CALL, RESULT, THOUGHT), tools=TOOLS),
    "no question": Conversation((ANSWER, AGAIN, ANOTHER)),
    "an empty answer": Conversation((QUESTION, Message("assistant", ""))),
}
# Texts in a template that its family's tokenizer has as single tokens.
_CONTROL = re.compile(
    r"<[|\uff5c][^\s{}'\"]*?[|\uff5c]>|<\|[A-Za-z_]+>|<[A-Za-z_]+\|>|<\|[A-Z_]+\|>"
    r"|</?think>|<(?:start|end)_of_turn>|<(?:begin|end)_of_sentence>|<EOT>|<AI>|<eos>|<bos>"
    r"|<seed:\w+>|\[/?(?:INST|SYSTEM_PROMPT|THINK|gMASK)\]|\[e~\[|\]~b\]|<SPECIAL_\d+>"
)
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")  # written as '<|' + role + '|>'
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|return|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<turn|>", "<|end_of_text|>", "<|end|>", "[e~["),
    *("<seed:eos>", "<end_of_sentence>", "<SPECIAL_12>"),
)


def main() -> None:
    """Print the table for the sources on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help=".jinja files, folders of them, or models")
    arguments = parser.parse_args()
    print("| template |", " | ".join(CONVERSATIONS), "|")
    print("|---" * (len(CONVERSATIONS) + 1) + "|")
    for name, tokenizer in _tokenizers(arguments.sources):
        cells = [_cell(tokenizer, one) for one in CONVERSATIONS.values()]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def _tokenizers(sources: list[str]) -> Iterator[tuple[str, Any]]:
    for source in sources:
        path = Path(source)
        files = [path] if path.suffix == ".jinja" else sorted(path.glob("*.jinja"))
        if (path / "tokenizer_config.json").is_file() or not files:
            yield source, load_tokenizer(ModelConfig(name_or_path=source))
            continue
        for file in files:
            yield file.stem, _with_template(file.read_text(encoding="utf-8"))


def _with_template(template: str) -> Any:
    """The shipped tokenizer with this template and its control tokens."""
    tokenizer = load_tokenizer(ModelConfig(name_or_path="tiny-python-llama"))
    texts = dict.fromkeys([*_CONTROL.findall(template), *_ROLES])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special="think" not in text) for text in texts]
    )
    tokenizer.eos_token = next((end for end in _ENDS if end in texts), tokenizer.eos_token)
    tokenizer.chat_template = template
    return tokenizer


def _cell(tokenizer: Any, conversation: Conversation) -> str:
    special = special_tokens_of(tokenizer)
    try:
        notes = template_notes(tokenizer, special, [conversation])
        parts = list(ChatTemplate(tokenizer, special).separate(conversation))
        for part in parts[1:]:
            notes += template_notes(tokenizer, special, [part])
        if len(parts) > 1:
            notes.append(f"{len(parts)} examples")
    except UserError as error:
        notes = [f"refused: {error}"]
    text = "; ".join(dict.fromkeys(map(_short, notes))) or "equal"
    return text.replace("|", "\\|").replace("<", "&lt;")


def _short(note: str) -> str:
    """A note in a table's words."""
    for start, short in (
        ("refused: the tokenizer's chat_template drops the system", "refused: dropped"),
        ("refused: the tokenizer's chat_template leaves out the thought", "refused: left out"),
        ("refused: the tokenizer's chat_template leaves out tool calls", "refused: no calls"),
        ("the chat_template writes today's date", "date"),
    ):
        if note.startswith(start):
            return short
    for pattern, short in (
        (r"refused: .*rejects the roles [^(]*\((.{,60}).*\): set.*", r"refused: \1"),
        (r"the model learns to write ('.*') in front.*", r"learnt: `\1`"),
        (r"the (\w+) .*?: (.*) here, (.*) there", r"\1 differs: `\2` here, `\3` there"),
    ):
        if match := re.fullmatch(pattern, note, re.DOTALL):
            return match.expand(short)
    return note[:120]


if __name__ == "__main__":
    main()
