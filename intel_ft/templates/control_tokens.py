"""Which added tokens are control tokens, and a tokenizer without them for words that spell one.

`encode_special_tokens` of the tokenizers library does not suffice: it covers only tokens that are
declared special, and `<|im_start|>` often is not.
"""

import json
import re
import uuid
from collections.abc import Collection, Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

# Control tokens that some tokenizers (Hermes, DeepSeek) do not declare special look like this.
_CONTROL_SHAPE = re.compile("<[|\uff5c].*[|\uff5c]>")  # U+FF5C is a full-width bar

ORDINARY = "ordinary_added_tokens"
"""The key in tokenizer_config.json for the tokens of model.add_tokens, which any text may hold."""


def content_controls(
    added: dict[int, AddedToken], ordinary: Collection[str] = ()
) -> dict[int, str]:
    """Ids and texts of added tokens that a user's words must never become.

    These are all but `ordinary` ones and runs of white space, which GPT-NeoX and Phi add to write
    code in fewer tokens.
    """
    return {
        token_id: token.content
        for token_id, token in added.items()
        if token.special
        or (
            token.content not in ordinary
            and not token.content.replace("▁", "").isspace()
            and token.content.strip("▁")
        )
    }


def completion_controls(
    added: dict[int, AddedToken], ordinary: Collection[str] = ()
) -> dict[int, str]:
    """Ids and texts of added tokens that an assistant's words must never become.

    Tokens that the tokenizer declares ordinary stay, and so do those in `ordinary`: a completion
    may hold Qwen's `<think>` or Gemma's `<table>`, and the model should write each as the single
    token it knows.
    """
    return {
        token_id: token.content
        for token_id, token in added.items()
        if token.special
        or (token.content not in ordinary and _CONTROL_SHAPE.fullmatch(token.content))
    }


def without_prefix_space(backend: Tokenizer) -> Tokenizer:
    """`backend`, or a copy of it that does not put a space in front of byte-level text.

    No decoder removes that space again, so an answer would come back with an extra space.
    """
    if not (
        isinstance(backend.pre_tokenizer, ByteLevel) and backend.pre_tokenizer.add_prefix_space
    ):
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.pre_tokenizer.add_prefix_space = False
    return copy


def without_control_tokens(backend: Tokenizer, controls: dict[int, str]) -> Tokenizer:
    """A copy of `backend` that splits the text of control tokens into ordinary tokens.

    All other ids are unchanged. Control tokens are no longer matched as added tokens, and they are
    removed from the model's vocabulary too (Unigram and `ignore_merges` would find them there).
    """
    state: dict[str, Any] = json.loads(backend.to_str())
    # Renamed to text that no data contains, not removed: their order determines the ids.
    secret = uuid.uuid4().hex
    renamed = {text: f"\ue000{secret}{token_id}" for token_id, text in controls.items()}
    for token in state["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    state["post_processor"] = state["truncation"] = state["padding"] = None
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            renamed.get(text, text): token_id for text, token_id in model["vocab"].items()
        }
    else:
        model["vocab"] = [[renamed.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if not _involves(merge, renamed.keys())
        ]
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def _involves(merge: str | list[str], texts: Iterable[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in texts or right in texts or left + right in texts
