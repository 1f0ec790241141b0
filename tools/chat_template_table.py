"""Compare chat templates with what intel_ft trains, and print a Markdown table of differences.

Each source is a chat template (a .jinja file), a folder of them, or a model (a folder with a
tokenizer, or a Hub id). A template alone is used with the shipped byte-level tokenizer, to which
the control tokens that it writes are added; so spaces of SentencePiece tokenizers are compared for
models only (tools/published_tokenizers.py makes folders of them). Templates come with TRL
(`pip download trl`: trl/chat_templates), vLLM (examples) and llama.cpp (models/templates).

    python tools/chat_template_table.py trl/chat_templates models/templates Qwen/Qwen3-0.6B

`--random N` compares N random conversations with each instead, and fails at the first that differs.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chat_template_check import SHAPES, Outcome, Row, check, rows
from hypothesis import HealthCheck, Verbosity, given, seed, settings
from tokenizers import AddedToken

from intel_ft.config_sections import ModelConfig
from intel_ft.models.tokenizer import load_tokenizer

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
_REASONS = {
    "drops the system": "no system message",
    "leaves out the reasoning": "no reasoning",
    "leaves out tool calls": "no calls",
    "leaves out the text of": "no words with a call",
    "after the prompt that a server sends": "no prompt for a call",
    r"rejects the roles [^(]*\((.{,60}).*\): set": r"\1",
}


def main() -> None:
    """Print the table for the sources on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help=".jinja files, folders of them, or models")
    parser.add_argument("--random", type=int, help="number of random conversations for each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random conversations")
    arguments = parser.parse_args()
    if arguments.random:
        print("| template | conversations | refused | examples | prompt alone | token across |")
        print("|---|---|---|---|---|---|")
        for name, tokenizer in _tokenizers(arguments.sources):
            found = _random(tokenizer, arguments.random, arguments.seed)
            keys = ("equal", "refused", "examples", "served", "spanned")
            print(f"| {name} |", " | ".join(str(found[key]) for key in keys), "|", flush=True)
        return
    print("| template |", " | ".join(SHAPES), "|")
    print("|---" * (len(SHAPES) + 1) + "|")
    for name, tokenizer in _tokenizers(arguments.sources):
        cells = [_cell(check(tokenizer, row)) for row in SHAPES.values()]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def _random(tokenizer: Any, count: int, number: int) -> Counter[str]:
    """What became of random conversations. Raises AssertionError for one that differs."""
    found: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(rows())
    def compare(row: Row) -> None:
        outcome = check(tokenizer, row)
        assert not outcome.unlike, outcome.unlike
        found["refused" if outcome.refused else "equal"] += 1
        found.update(examples=outcome.examples, served=outcome.served, spanned=outcome.spanned)

    compare()
    return found


def _tokenizers(sources: list[str]) -> Iterator[tuple[str, Any]]:
    for source in sources:
        path = Path(source)
        files = [path] if path.suffix == ".jinja" else sorted(path.glob("*.jinja"))
        if (path / "tokenizer_config.json").is_file() or not files:
            yield Path(source).name, load_tokenizer(ModelConfig(name_or_path=source))
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


def _cell(outcome: Outcome) -> str:
    """What became of a row, in a table's words."""
    if outcome.refused:
        text = f"refused: {_reason(outcome.refused)}"
    elif outcome.printed:
        text = f"printed: {outcome.printed[:100]}"
    elif outcome.unlike:
        text = f"DIFFERS: {outcome.unlike}"
    else:
        text = "prompt equal" if outcome.served else "equal"
        text += f", {outcome.examples} examples" if outcome.examples > 1 else ""
        text += ", a token across" if outcome.spanned else ""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _reason(refused: str) -> str:
    for pattern, reason in _REASONS.items():
        if match := re.search(pattern, refused, re.DOTALL):
            return match.expand(reason)
    return refused[:120]


if __name__ == "__main__":
    main()
