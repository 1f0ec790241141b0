"""Token ids in, text out as soon as it is certain; called from the two engines of inference."""

from typing import Any

from tokenizers.decoders import DecodeStream

from intel_ft.runtimes.language_model import Stream, decode, first_stop


class TextStream:
    """Feeds `stream` the text of one answer, token by token.

    `tokenizers.DecodeStream` holds back bytes that are not a character yet. It also keeps what
    comes before the new token in view: transformers.TextStreamer forgets it after each line feed,
    and with SentencePiece tokenizers (Llama 2) then eats one space of the next line's indentation.
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
        self._shown = 0  # characters of what was decoded that went to the stream
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
        if first_stop(self._sent, self._stop_texts) is None:
            self._show(len(self._sent))

    def _send(self, text: str) -> None:
        self._sent += text
        end = first_stop(self._sent, self._stop_texts)
        self._show(len(self._sent) - self._could_begin_a_stop() if end is None else end)

    def _show(self, end: int) -> None:
        if end > self._shown:
            self._stream(self._sent[self._shown : end])
            self._shown = end

    def _could_begin_a_stop(self) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        longest = max(map(len, self._stop_texts), default=0)
        for count in range(min(longest - 1, len(self._sent)), 0, -1):
            if any(stop.startswith(self._sent[-count:]) for stop in self._stop_texts):
                return count
        return 0
