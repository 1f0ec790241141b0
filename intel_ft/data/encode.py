"""Spans to token ids with a loss mask that is exact by construction; called from data.prepare and
data.prompt.

A completion is encoded on its own and its end is appended as a token id, so the supervised ids are
those of completion and end and nothing else, whatever surrounds them. Template and content between
two completions are encoded together, as they would be at inference. If the result holds more
control tokens than the template wrote, a user's words spelled one: that stretch is encoded again
piece by piece, the words with a tokenizer that does not know control tokens (data.plain).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from intel_ft.data.control_tokens import (
    completion_controls,
    content_controls,
    without,
    without_prefix_space,
)
from intel_ft.data.examples import Examples, concatenate
from intel_ft.data.pieces import Layout, flat, lay_out, sums, without_last_space
from intel_ft.data.spans import Marks, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK = 2048  # examples encoded at a time: enough to fill every core, little memory


class SpanEncoder:
    """Encodes spans with one tokenizer, and remembers what its template texts contain."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", marks: Marks) -> None:
        self._backend = without_prefix_space(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._ids = {text: [int(tokenizer.convert_tokens_to_ids(text))] for text in marks.added}
        for text, id in ((marks.bos, tokenizer.bos_token_id), (marks.eos, tokenizer.eos_token_id)):
            if text is not None:
                self._ids[text] = [int(id)]
        added = self._backend.get_added_tokens_decoder()
        self._content_controls = content_controls(added)
        self._completion_controls = completion_controls(added)
        size = max(
            [self._backend.get_vocab_size(with_added_tokens=True), *(id + 1 for id in added)]
        )
        self._is_content_control = _table(self._content_controls, size)
        self._is_completion_control = _table(self._completion_controls, size)
        # Does it put a space in front of what it encodes (Llama 2, Mistral), and does it leave that
        # out where there is one already, so that "a" and " a" come out the same?
        word = self._backend.encode("a", add_special_tokens=False)
        self._prefixes_space = word.tokens[:1] != [] and word.tokens[0].startswith("▁")
        spaced = self._backend.encode(" a", add_special_tokens=False)
        self._swallows_space = self._prefixes_space and word.ids == spaced.ids
        self._controls_in_template: dict[str, int] = {}

    @cached_property
    def _plain_content(self) -> Tokenizer:
        return without(self._backend, self._content_controls)

    @cached_property
    def _plain_completion(self) -> Tokenizer:
        return without(self._backend, self._completion_controls)

    def encode(self, examples: Iterable[list[Span]]) -> Examples:
        """Token ids of each example and which of them belong to a completion, its end, or `text`.

        For every stretch of supervised ids, decoding gives the completion and its end (as the
        tokenizer normalizes text: one that applies NFC gives NFC back). The mask is that of the
        spans: an example's first token may be in it.
        """
        parts: list[Examples] = []
        # The tokenizer encodes a chunk on all cores without the interpreter's lock, meanwhile the
        # chunk before it becomes arrays and the one behind it is rendered.
        waiting: tuple[Layout, Future[list[Encoding]]] | None = None
        with ThreadPoolExecutor(1) as ahead:
            for chunk in _chunks(examples, _CHUNK):
                layout = lay_out(chunk, self._ids, self._prefixes_space)
                texts = [self._joined(run) for run in layout.runs]
                encoded = ahead.submit(
                    self._backend.encode_batch_fast, texts, add_special_tokens=False
                )
                if waiting:
                    parts.append(self._encoded(*waiting))
                waiting = layout, encoded
            if waiting:
                parts.append(self._encoded(*waiting))
        return concatenate(parts)

    def _encoded(self, layout: Layout, encoded: "Future[list[Encoding]]") -> Examples:
        stretches = layout.stretches
        for place, encoding in zip(layout.places, encoded.result(), strict=True):
            stretches[place] = encoding.ids
        tokens, ends = flat(stretches)
        if spelled := self._spelled(layout, tokens, ends):
            for index in spelled:
                stretches[layout.places[index]] = self._piecewise(layout.runs[index])
            tokens, ends = flat(stretches)
        return Examples(
            tokens,
            np.repeat(np.array(layout.supervised, np.bool_), np.diff(ends)),
            ends[np.concatenate(([0], np.cumsum(layout.counts, dtype=np.int64)))],
        )

    def _spelled(
        self, layout: Layout, tokens: npt.NDArray[np.int32], ends: npt.NDArray[np.int64]
    ) -> list[int]:
        """Indices of the runs in which words came out as a control token.

        tokens[ends[i]:ends[i + 1]] is stretch i of the layout.
        """
        places = np.array(layout.places, np.int64)
        in_content = sums(self._is_content_control[tokens], ends)[places].tolist()
        in_completion = sums(self._is_completion_control[tokens], ends)[places].tolist()
        return [
            index
            for index, run in enumerate(layout.runs)
            if (
                in_completion[index]
                if run[0].kind == "completion"
                else run[0].kind != "text" and in_content[index] != self._expected(run)
            )
        ]

    def _expected(self, run: list[Span]) -> int:
        """Control tokens that the run's template spans write."""
        total = 0
        for span in run:
            if span.kind == "template":
                if span.text not in self._controls_in_template:
                    ids = self._backend.encode(span.text, add_special_tokens=False).ids
                    count = int(self._is_content_control[ids].sum()) if ids else 0
                    self._controls_in_template[span.text] = count
                total += self._controls_in_template[span.text]
        return total

    def _piecewise(self, run: list[Span]) -> list[int]:
        if run[0].kind == "completion":
            text = self._joined(run)
            return list(self._plain_completion.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        for span, following in zip(run, [*run[1:], None], strict=True):
            if span.kind == "content":
                ids += self._plain_content.encode(span.text, add_special_tokens=False).ids
                continue
            gives_way = self._prefixes_space and following and following.kind == "content"
            text = without_last_space(span).text if gives_way else span.text
            ids += self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _joined(self, run: list[Span]) -> str:
        text = "".join([span.text for span in run])
        if self._swallows_space and run[0].kind == "completion" and text.startswith(" "):
            return " " + text
        return text


def _table(ids: Iterable[int], size: int) -> npt.NDArray[np.bool_]:
    table = np.zeros(size, np.bool_)
    table[list(ids)] = True
    return table


def _chunks(examples: Iterable[list[Span]], size: int) -> Iterator[list[list[Span]]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, size)):
        yield chunk
