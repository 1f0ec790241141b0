"""Decode an answer token by token, streaming text as soon as it is final."""

from typing import Any

from tokenizers.decoders import DecodeStream

from intel_ft.runtimes.language_model import Stream, decode, find_stop_text
from intel_ft.templates.thoughts import empty_thought_length, may_begin_empty_thought


class TextStream:
    """Passes the text of one answer to `stream`, token by token.

    `tokenizers.DecodeStream` holds back bytes that do not form a character yet, and decodes each
    token in its context. transformers.TextStreamer drops the context after each line feed, and so
    loses a space of the next line's indentation with SentencePiece tokenizers (Llama 2).
    """

    def __init__(
        self,
        tokenizer: Any,
        stream: Stream,
        stops: frozenset[int],
        stop_texts: tuple[str, ...] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = stream
        self._stops = stops
        self._stop_texts = stop_texts
        self._shown = 0  # number of characters of _decoded that went to the stream
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._decoded = ""
        self._stopped = False

    def add(self, token: int) -> None:
        """Take the next token; nothing after a stop token counts."""
        if self._stopped or token in self._stops:
            self._stopped = True
            return
        self._tokens.append(token)
        # Only tokenizers of the `tokenizers` library can decode step by step; with the few others
        # all text comes at the end.
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and (text := self._decoder.step(backend, token)):
            self._append(text)

    def end(self) -> None:
        """Send what was held back, such as an incomplete last character."""
        text = decode(self._tokenizer, self._tokens)
        if text.startswith(self._decoded) and len(text) > len(self._decoded):
            self._append(text[len(self._decoded) :])
        end_of_text = find_stop_text(self._decoded, self._stop_texts)
        self._show(len(self._decoded) if end_of_text is None else end_of_text)

    def _append(self, text: str) -> None:
        self._decoded += text
        end = find_stop_text(self._decoded, self._stop_texts)
        if self._shown or not may_begin_empty_thought(self._decoded):
            self._show(len(self._decoded) - self._stop_prefix_length() if end is None else end)

    def _show(self, end: int) -> None:
        if not self._shown:
            self._shown = empty_thought_length(self._decoded)
        if end > self._shown:
            self._stream(self._decoded[self._shown : end])
            self._shown = end

    def _stop_prefix_length(self) -> int:
        """Number of characters at the end that may be the beginning of a stop text."""
        longest = max(map(len, self._stop_texts), default=0)
        for count in range(min(longest - 1, len(self._decoded)), 0, -1):
            if any(stop.startswith(self._decoded[-count:]) for stop in self._stop_texts):
                return count
        return 0
