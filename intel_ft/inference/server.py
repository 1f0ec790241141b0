"""HTTP client for OpenAI-compatible servers: vLLM, OVMS, `transformers serve`.

See https://platform.openai.com/docs/api-reference/chat and .../completions; top_k and
repetition_penalty are additions of vLLM and OVMS, and sent only when they are set.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError
from intel_ft.inference.batch_output import Answer
from intel_ft.runtimes.language_model import Sampling, Stream, find_stop_text
from intel_ft.templates.formats import Message
from intel_ft.templates.prompt import prompt_text
from intel_ft.templates.template import Template

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_BYTES = 64 << 20  # of one answer: some broken servers never end it
BUSY = (429, 503)
PAUSES = (1.0, 4.0)  # seconds before each retry with a busy server


class Server:
    """A client for `model` at `url` (http://host:8000, with or without /v1 or /v3).

    timeout: seconds for a complete answer. template: a built-in one, to format the prompt here and
    request its completion; None leaves it to the server's chat template. The API key in
    OPENAI_API_KEY, if any, is sent.

    Requests raise EnvironmentProblem if the server cannot be reached or is too slow, UserError if
    it rejects the request, IntelFTError if it fails or its answer is not this API's.
    """

    def __init__(
        self, url: str, model: str, timeout: float = 600, template: Template | None = None
    ) -> None:
        parsed = _url(url)
        self.url = str(parsed)
        self._model = model
        self._timeout = timeout
        self._template: Template | None = template
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.Client(
            base_url=parsed,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10)),
            limits=httpx.Limits(max_connections=None),
        )

    def answer(
        self, messages: tuple[Message, ...], system: str | None, sampling: Sampling, seed: int
    ) -> Answer:
        """The whole answer to `messages`."""
        path, body = self._request(messages, system, sampling, seed)
        for pause in (*PAUSES, None):
            status, content = self._post(path, body)
            if status not in BUSY or pause is None:
                break
            time.sleep(pause)
        self._check(status, content)
        value = self._parsed(content)
        try:
            choice = value["choices"][0]
            text = choice["text"] if self._template else choice["message"]["content"]
            reason = choice.get("finish_reason")
            usage = value.get("usage") or {}
            tokens = usage.get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._malformed(content) from None
        if not isinstance(text, str | None):
            raise self._malformed(content)
        return _answer(text or "", tokens, reason, sampling)

    def stream(
        self, messages: tuple[Message, ...], system: str | None, sampling: Sampling, write: Stream
    ) -> str:
        """The text of the answer to `messages`, also passed to `write` piece by piece."""
        path, body = self._request(messages, system, sampling, sampling.seed)
        pieces: list[str] = []
        for event in self._events(path, body | {"stream": True}):
            try:
                choices = event["choices"]
                piece = choices[0]["delta"].get("content") if choices else None
            except (KeyError, IndexError, TypeError, AttributeError):
                raise self._malformed(json.dumps(event).encode()) from None
            if isinstance(piece, str) and piece:
                pieces.append(piece)
                write(piece)
        return "".join(pieces)

    def _request(
        self, messages: tuple[Message, ...], system: str | None, sampling: Sampling, seed: int
    ) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature:
            body |= {"seed": seed, "top_p": sampling.top_p}
            if sampling.top_k:
                body["top_k"] = sampling.top_k
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._template:
            return "completions", body | {"prompt": prompt_text(self._template, messages, system)}
        if system and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        turns = [{"role": message.role, "content": message.full_content} for message in messages]
        return "chat/completions", body | {"messages": turns}

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        end = time.monotonic() + self._timeout
        content = bytearray()
        with self._explain_errors(), self._client.stream("POST", path, json=body) as response:
            for piece in response.iter_bytes():
                content += piece
                self._check_bounds(len(content), end)
        return response.status_code, bytes(content)

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Server-sent events up to [DONE]: https://html.spec.whatwg.org/#server-sent-events."""
        end, size = time.monotonic() + self._timeout, 0
        with self._explain_errors(), self._client.stream("POST", path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                self._check(response.status_code, response.read())
            for line in response.iter_lines():
                size += len(line)
                self._check_bounds(size, end)
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or not data:
                    continue
                if data == "[DONE]":
                    return
                yield self._parsed(data.encode(errors="replace"))

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise self._unreachable("no connection within 10 s") from None
            raise self._too_slow() from None
        except httpx.DecodingError as error:
            raise self._malformed(str(error).encode()) from None
        except httpx.TransportError as error:
            raise self._unreachable(str(error) or type(error).__name__) from None

    def _check_bounds(self, size: int, end: float) -> None:
        if time.monotonic() > end:
            raise self._too_slow()
        if size > MAX_BYTES:
            raise IntelFTError(f"{self.url}: the answer is larger than {MAX_BYTES >> 20} MiB")

    def _check(self, status: int, content: bytes) -> None:
        if status == httpx.codes.OK:
            return
        message = _error_message(content)
        if status in (401, 403):
            raise UserError(f"{self.url}: needs a valid API key in {KEY_VARIABLE}: {message}")
        if status == httpx.codes.NOT_FOUND:
            raise UserError(
                f"{self.url}: no such model or path (model {self._model}, path "
                f"{'completions' if self._template else 'chat/completions'}): {message}"
            )
        if 300 <= status < 500 and status not in BUSY:
            raise UserError(f"{self.url}: rejected the request ({status}): {message}")
        raise IntelFTError(f"{self.url}: the server failed ({status}): {message}")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise self._malformed(content) from None
        if not isinstance(value, dict):
            raise self._malformed(content)
        if "error" in value:
            raise IntelFTError(f"{self.url}: the server failed: {_error_message(content)}")
        return value

    def _malformed(self, content: bytes) -> IntelFTError:
        return IntelFTError(
            f"{self.url}: not the answer of an OpenAI-compatible server: "
            f"{_short(content.decode(errors='replace'))}"
        )

    def _too_slow(self) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.url}: no complete answer within {self._timeout:g} s: raise --timeout, or lower "
            "--max-new-tokens or --batch-size"
        )

    def _unreachable(self, why: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.url}: cannot be reached ({_short(why)}): is the server running there?"
        )


def _answer(text: str, tokens: Any, reason: Any, sampling: Sampling) -> Answer:
    end = find_stop_text(text, sampling.stop)  # some servers do not remove the stop text
    stopped = end is not None or reason == "stop"
    return Answer(text[:end], tokens if isinstance(tokens, int) else None, stopped)


def _url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise UserError(f"--server {url}: not a URL ({error})") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"--server {url}: write it as http://host:port")
    last = parsed.path.rpartition("/")[2]
    versioned = last[:1] == "v" and last[1:].isdigit()
    return parsed if versioned else parsed.copy_with(path=f"{parsed.path.rstrip('/')}/v1")


def _error_message(content: bytes) -> str:
    """An error's message: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or the text."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(text)
        error = value.get("error", value.get("detail", value.get("message")))
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        message = text
    return _short(message if isinstance(message, str) else text)


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return (line if len(line) <= 200 else line[:197] + "...") or "(empty response)"
