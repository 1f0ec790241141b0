"""HTTP servers on this machine whose behaviour a test defines."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behave = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextmanager
def serving(behave: Behave) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the URL of a server, and the list of the bodies of POST requests that it received.

    Each POST calls `behave(handler, body)`. The bodies have the request's path added.
    """
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"path": self.path, "authorization": self.headers["Authorization"]})
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has left
                behave(self, body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, content: Any, status: int = 200) -> None:
    """Answer with JSON, or with bytes unchanged."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def completion(text: str | None, **more: Any) -> dict[str, Any]:
    """A chat completion in the format of the API."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice | more], "usage": {"completion_tokens": 3}}


def last_question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])
