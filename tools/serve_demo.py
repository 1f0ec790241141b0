"""Serve a model folder over HTTP with OpenAI's chat API, or ask it one question.

    python tools/serve_demo.py DIR --ask "Name three rivers."
    python tools/serve_demo.py DIR --port 8000            # until Ctrl-C; then, elsewhere:
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Name three rivers."}]}'

An IR is served by OpenVINO Model Server if `ovms` is on the PATH and DIR has a graph.pbtxt,
otherwise by OpenVINO GenAI in this process; any other folder by torch. In this process, prompts use
the template of training, and requests are answered one at a time. This is a demonstration without
authentication and TLS; use OVMS in production (docs/publishing.md).
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.inference.prompt_template import prompt_template
from intel_ft.optional_packages import block_torch_import
from intel_ft.runtimes.language_model import Completion, Sampling, Stream
from intel_ft.runtimes.open_model import open_model
from intel_ft.templates.formats import Message
from intel_ft.templates.prompt import prompt_tokens

LOAD_TIMEOUT = 300.0  # seconds for a server to load its model
ROLES = ("system", "user", "assistant")


class Model:
    """A model that answers one request at a time."""

    def __init__(self, folder: str) -> None:
        artifact = resolve(folder)
        if artifact.kind == "openvino":
            block_torch_import()
        self.name = Path(folder).resolve().name
        self.model = open_model(artifact)
        self.template, _ = prompt_template(artifact, self.model.tokenizer)
        self.system_prompt = artifact.system_prompt
        self.busy = threading.Lock()

    def answer(self, request: dict[str, Any], stream: Stream | None) -> tuple[Completion, int]:
        """The answer to a chat request, and the number of tokens of its prompt.

        Raises UserError for an invalid request.
        """
        messages = _messages(request.get("messages"))
        try:
            sampling = Sampling(
                int(request.get("max_completion_tokens") or request.get("max_tokens") or 256),
                temperature=float(request.get("temperature") or 0.0),
                top_p=float(request.get("top_p") or 1.0),
                seed=int(request.get("seed") or 0),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"expected a number: {error}") from None
        with self.busy:  # the tokenizer, too, is not safe to use from two threads
            prompt = prompt_tokens(
                self.model.tokenizer, self.template, messages, self.system_prompt
            )
            return self.model.generate(prompt, sampling, stream), len(prompt)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UserError("messages must be a list of at least one message")
    messages = []
    for message in value:
        role, content = message.get("role"), message.get("content")
        if isinstance(content, list):  # parts; only text is used
            content = "".join(str(part.get("text", "")) for part in content)
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"messages: each needs a role ({', '.join(ROLES)}) and a text content")
        messages.append(Message(role, content))
    if messages[-1].role != "user":
        raise UserError("messages: the last one must be the user's")
    return tuple(messages)


class Handler(BaseHTTPRequestHandler):
    """/v1/chat/completions (also streamed) and /v1/models."""

    model: Model
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Log nothing: requests are private."""

    def do_GET(self) -> None:
        """List the one model."""
        if self.path == "/v1/models":
            entry = {"id": self.model.name, "object": "model", "owned_by": "intel_ft"}
            self._json(200, {"object": "list", "data": [entry]})
        else:
            self._error(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        """Answer a conversation."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            self._error(404, f"no such path: {self.path}")
            return
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        about |= {"model": self.model.name}
        try:
            request = json.loads(body)
            if request.get("stream"):
                self._stream(request, about)
            else:
                self._whole(request, about)
        except (ValueError, AttributeError):
            self._error(400, "the body must be a JSON object in OpenAI's format")
        except IntelFTError as error:
            self._error(400, str(error))

    def _whole(self, request: dict[str, Any], about: dict[str, Any]) -> None:
        completion, prompt = self.model.answer(request, None)
        new = len(completion.new_tokens)
        message = {"role": "assistant", "content": completion.text}
        reason = "stop" if completion.stopped else "length"
        self._json(
            200,
            about
            | {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": new,
                    "total_tokens": prompt + new,
                },
            },
        )

    def _stream(self, request: dict[str, Any], about: dict[str, Any]) -> None:
        """Send server-sent events; the headers go with the first piece, after possible errors."""
        about |= {"object": "chat.completion.chunk"}
        started = False

        def send(delta: dict[str, str], reason: str | None = None) -> None:
            nonlocal started
            if not started:
                started = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            self.wfile.write(b"data: " + json.dumps(about | {"choices": [choice]}).encode())
            self.wfile.write(b"\n\n")

        completion, _ = self.model.answer(request, lambda piece: send({"content": piece}))
        send({}, "stop" if completion.stopped else "length")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def in_process(folder: str, host: str, port: int) -> Iterator[str]:
    """Serve with GenAI or torch in threads of this process; yields the URL of the API."""
    Handler.model = Model(folder)
    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def model_server(folder: str, host: str, port: int) -> Iterator[str]:
    """Serve with `ovms`; yields the URL of the API once the model is loaded."""
    port = port or _free_port(host)
    name = Path(folder).resolve().name
    command = ["ovms", "--model_path", str(Path(folder).resolve()), "--model_name", name]
    command += ["--rest_port", str(port), "--rest_bind_address", host]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        try:
            api = f"http://{host}:{port}/v3"
            end = time.monotonic() + LOAD_TIMEOUT
            while not _answers(f"{api}/models"):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("ovms did not start: see its messages above")
                time.sleep(0.5)
            yield api
        finally:
            process.terminate()


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def ask(api: str, model: str, question: str, max_tokens: int) -> str:
    """The answer of the server at `api` to one question."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
    }
    request = urllib.request.Request(
        f"{api}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=LOAD_TIMEOUT) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        raise SystemExit(f"error: the server answered: {error.read().decode()}") from None


def main() -> None:
    """Serve, and either ask one question or run until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a model folder with OpenAI's chat API.")
    parser.add_argument(
        "folder", metavar="DIR", help="folder of an export, a merged model, an adapter or a run"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--ask", metavar="QUESTION", help="ask this question over HTTP, then exit")
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    ovms = shutil.which("ovms") is not None and (Path(options.folder) / "graph.pbtxt").is_file()
    try:
        with (model_server if ovms else in_process)(
            options.folder, options.host, options.port
        ) as api:
            print(f"{'ovms' if ovms else 'intel_ft'} at {api}", file=sys.stderr, flush=True)
            if options.ask:
                name = Path(options.folder).resolve().name
                print(ask(api, name, options.ask, options.max_tokens))
            else:
                threading.Event().wait()
    except IntelFTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
