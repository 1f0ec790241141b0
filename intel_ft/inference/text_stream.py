"""Token ids in, text out as soon as it is certain; called from the two engines of inference."""

from typing import Any

from tokenizers.decoders import DecodeStream

from intel_ft.inference.language_model import Stream, decode


class TextStream:
    """Feeds `stream` the text of one answer, token by token.

    `tokenizers.DecodeStream` holds back bytes that are not a character yet. It also keeps what
    comes before the new token in view: transformers.TextStreamer forgets it after each line feed,
    and with SentencePiece tokenizers (Llama 2) then eats one space of the next line's indentation.
    """

    def __init__(self, tokenizer: Any, stream: Stream, stops: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = stream
        self._stops = stops
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._sent = ""
        self._stopped = False

    def add(self, token: int) -> None:
        """Take the next token; nothing after a stop token counts."""
        if self._stopped or token in self._stops:
            self._stopped = True
            return
        self._tokens.append(token)
        # Only tokenizers of the `tokenizers` library can decode step by step; the text of the
        # few others comes whole, at the end.
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and (text := self._decoder.step(backend, token)):
            self._send(text)

    def end(self) -> None:
        """Send what was held back, a broken last character for instance."""
        whole = decode(self._tokenizer, self._tokens)
        if whole.startswith(self._sent) and len(whole) > len(self._sent):
            self._send(whole[len(self._sent) :])

    def _send(self, text: str) -> None:
        self._sent += text
        self._stream(text)
