"""Spans to token ids with a loss mask that is exact by construction.

Worked example: one conversation in the `llama2` template, with the shipped tokenizer.

    spans    start <s> | template "[INST] " | content "Add 1 to x." | template " [/INST] "
             | completion "x + 1" | end </s>
    pieces   start | template + content + template, as one text | completion     | end
    ids      [0]   | [61, 597, 584, 63, ..., 63, 223] (16)      | [90, 467, 371] | [1]
    mask     F     | F x 16                                     | T  T  T        | T

    Examples: tokens int32 [21], supervised bool [21], offsets int64 [0, 21]

With n examples of T tokens in all, tokens and supervised have shape [T] and offsets [n + 1].

An answer is encoded separately and its end is appended as a token id, so the supervised ids are
those of the answer and its end, whatever surrounds them. Nothing is searched for in the
encoded text. Template and content between two completions are encoded together, as they are at
inference, and so are the words of an answer and what its template writes between them, such as a
tool call. If the result holds more control tokens than the template wrote, then words spelled one:
that run is encoded again span by span, the words with a copy of the tokenizer that has no control
tokens (data.control_tokens).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from intel_ft.templates.control_tokens import (
    ORDINARY,
    completion_controls,
    content_controls,
    without_control_tokens,
    without_prefix_space,
)
from intel_ft.templates.examples import Examples, concatenate
from intel_ft.templates.pieces import (
    Pieces,
    count_per_piece,
    flatten_ids,
    split_into_pieces,
    strip_last_space,
)
from intel_ft.templates.spans import Span, SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHED = 10_000  # texts of templates whose ids are remembered: tools and calls differ by row
_CHUNK = 2048  # examples encoded at a time: enough to keep every core busy with little memory


class SpanEncoder:
    """Encodes spans with one tokenizer and caches how many controls each template text holds."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", special: SpecialTokens) -> None:
        self._backend = without_prefix_space(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._special_ids = {
            text: [int(tokenizer.convert_tokens_to_ids(text))] for text in special.added
        }
        for text, token_id in (
            (special.bos, tokenizer.bos_token_id),
            (special.eos, tokenizer.eos_token_id),
        ):
            if text is not None:
                self._special_ids[text] = [int(token_id)]
        added = self._backend.get_added_tokens_decoder()
        ordinary = tokenizer.init_kwargs.get(ORDINARY, ())
        self._content_controls = content_controls(added, ordinary)
        self._completion_controls = completion_controls(added, ordinary)
        size = max(
            [
                self._backend.get_vocab_size(with_added_tokens=True),
                *(token_id + 1 for token_id in added),
            ]
        )
        self._is_content_control = _lookup_table(self._content_controls, size)
        self._is_completion_control = _lookup_table(self._completion_controls, size)
        # Does the tokenizer put a space in front of what it encodes (Llama 2, Mistral), and does it
        # skip that where there is a space already, so that "a" and " a" give the same ids?
        word = self._backend.encode("a", add_special_tokens=False)
        self._prefixes_space = word.tokens[:1] != [] and word.tokens[0].startswith("▁")
        spaced = self._backend.encode(" a", add_special_tokens=False)
        self._swallows_space = self._prefixes_space and word.ids == spaced.ids
        # A tokenizer that puts a space in front does so where a text begins, not after other text;
        # a token may also take the white space after it (Phi-3's `<|end|>`).
        self._needs_lead = self._prefixes_space or any(token.rstrip for token in added.values())
        self._lead_ids: dict[str, list[int]] = {}
        self._controls_in_text: dict[tuple[str, str], int] = {}

    @cached_property
    def _content_tokenizer(self) -> Tokenizer:
        return without_control_tokens(self._backend, self._content_controls)

    @cached_property
    def _completion_tokenizer(self) -> Tokenizer:
        return without_control_tokens(self._backend, self._completion_controls)

    def encode(self, examples: Iterable[list[Span]]) -> Examples:
        """Token ids of each example, with a mask of the tokens of an answer, its end, or `text`.

        Each supervised stretch decodes to the completion and its end (as the tokenizer normalizes
        text: one that applies NFC returns NFC). The mask is that of the spans: an example's first
        token may be in it.
        """
        parts: list[Examples] = []
        # The tokenizer encodes a chunk on all cores without the GIL; meanwhile this thread turns
        # the previous chunk into arrays and renders the next one.
        pending: tuple[Pieces, Future[list[Encoding]]] | None = None
        with ThreadPoolExecutor(1) as executor:
            for chunk in _chunks(examples, _CHUNK):
                pieces = split_into_pieces(
                    chunk, self._special_ids, self._prefixes_space, self._needs_lead
                )
                texts = [
                    lead + self._run_text(run, lead)
                    for run, lead in zip(pieces.runs, pieces.leads, strict=True)
                ]
                encodings = executor.submit(
                    self._backend.encode_batch_fast, texts, add_special_tokens=False
                )
                if pending:
                    parts.append(self._to_examples(*pending))
                pending = pieces, encodings
            if pending:
                parts.append(self._to_examples(*pending))
        return concatenate(parts)

    def _to_examples(self, pieces: Pieces, encodings: "Future[list[Encoding]]") -> Examples:
        for index, encoding in enumerate(encodings.result()):
            ids, lead = encoding.ids, pieces.leads[index]
            pieces.ids[pieces.positions[index]] = (
                self._after(lead, ids, pieces.runs[index]) if lead else ids
            )
        tokens, offsets = flatten_ids(pieces.ids)
        if indices := self._runs_that_spell_controls(pieces, tokens, offsets):
            for index in indices:
                pieces.ids[pieces.positions[index]] = self._encode_by_span(
                    pieces.runs[index], pieces.leads[index]
                )
            tokens, offsets = flatten_ids(pieces.ids)
        return Examples(
            tokens,
            np.repeat(np.array(pieces.supervised, np.bool_), np.diff(offsets)),
            offsets[np.concatenate(([0], np.cumsum(pieces.counts, dtype=np.int64)))],
        )

    def _after(self, lead: str, ids: list[int], run: list[Span]) -> list[int]:
        """The ids of `run`, given those of `lead` and the run together.

        Where a token spans both, the run is encoded on its own: a model continues a prompt, and
        does not change its tokens.
        """
        if lead not in self._lead_ids:
            _make_room(self._lead_ids)
            self._lead_ids[lead] = self._backend.encode(lead, add_special_tokens=False).ids
        first = self._lead_ids[lead]
        if ids[: len(first)] == first:
            return ids[len(first) :]
        return list(self._backend.encode(self._run_text(run), add_special_tokens=False).ids)

    def _runs_that_spell_controls(
        self, pieces: Pieces, tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
    ) -> list[int]:
        """Indices of the runs in which words became a control token.

        tokens[offsets[i]:offsets[i + 1]] is piece i.
        """
        positions = np.array(pieces.positions, np.int64)
        in_content = count_per_piece(self._is_content_control[tokens], offsets)[positions].tolist()
        in_completion = count_per_piece(self._is_completion_control[tokens], offsets)[
            positions
        ].tolist()
        return [
            index
            for index, run in enumerate(pieces.runs)
            if run[0].kind != "text"
            and (
                in_completion[index]
                and in_completion[index] != self._controls_written(run, "written")
                if run[0].kind in ("completion", "written")
                else in_content[index] != self._controls_written(run, "template")
            )
        ]

    def _controls_written(self, run: list[Span], kind: str) -> int:
        """Number of control tokens that the spans of this kind write: template or written."""
        total = 0
        for span in run:
            if span.kind == kind:
                key = (kind, span.text)
                if key not in self._controls_in_text:
                    ids = self._backend.encode(span.text, add_special_tokens=False).ids
                    is_control = (
                        self._is_content_control
                        if kind == "template"
                        else self._is_completion_control
                    )
                    _make_room(self._controls_in_text)
                    self._controls_in_text[key] = int(is_control[ids].sum()) if ids else 0
                total += self._controls_in_text[key]
        return total

    def _encode_by_span(self, run: list[Span], lead: str) -> list[int]:
        if all(span.kind == "completion" for span in run):
            return _continue(self._completion_tokenizer, lead, self._run_text(run, lead))
        ids: list[int] = []
        for span, following in zip(run, [*run[1:], None], strict=True):
            if span.kind in ("content", "completion"):
                plain = (
                    self._content_tokenizer
                    if span.kind == "content"
                    else self._completion_tokenizer
                )
                ids += plain.encode(span.text, add_special_tokens=False).ids
                continue
            before_words = following is not None and following.kind in ("content", "completion")
            strips = self._prefixes_space and before_words
            text = strip_last_space(span).text if strips else span.text
            front = lead
            if ids:  # behind words of the answer no space is put in front
                front = "a" if span.kind == "written" and self._prefixes_space else ""
            ids += _continue(self._backend, front, text)
        return ids

    def _run_text(self, run: list[Span], lead: str = "") -> str:
        text = "".join([span.text for span in run])
        swallowed = self._swallows_space and not lead
        if swallowed and run[0].kind in ("completion", "written") and text.startswith(" "):
            return " " + text
        return text


def decoded(
    tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int] | npt.NDArray[np.int32]
) -> str:
    """The text of ids, with the spaces that some tokenizers (Llama 3's) else take out: `a .`."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _continue(tokenizer: Tokenizer, lead: str, text: str) -> list[int]:
    """The ids of `text` where it follows `lead`; its own where a token spans both."""
    first = tokenizer.encode(lead, add_special_tokens=False).ids
    ids = tokenizer.encode(lead + text, add_special_tokens=False).ids
    if ids[: len(first)] == first:
        return list(ids[len(first) :])
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= _CACHED:
        cache.clear()


def _lookup_table(ids: Iterable[int], size: int) -> npt.NDArray[np.bool_]:
    table = np.zeros(size, np.bool_)
    table[list(ids)] = True
    return table


def _chunks(examples: Iterable[list[Span]], size: int) -> Iterator[list[list[Span]]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, size)):
        yield chunk
