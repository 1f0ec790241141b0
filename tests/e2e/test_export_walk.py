"""From a run's adapter to an OpenVINO model that chats in a terminal."""

import json
import os
import pty
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.export_fixtures import make_adapter

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

CHAT = """
import sys
from intel_ft.artifacts.resolve import resolve
from intel_ft.inference.chat import chat, local_reply
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model
from intel_ft.inference.prompt_template import prompt_template
artifact = resolve(sys.argv[1])
model = open_model(artifact)
template, _ = prompt_template(artifact, model.tokenizer)
def write(text):
    print(text, end="", flush=True)
chat(local_reply(model, template, Sampling(max_new_tokens=8)), artifact.system_prompt, write=write)
print("left", template)
"""


@pytest.fixture(scope="module")
def ir(page_base, tmp_path_factory) -> Path:
    from intel_ft.export.export import export

    root = tmp_path_factory.mktemp("walk")
    make_adapter(page_base, root / "run" / "adapter")
    export(str(root / "run"), root / "ir", "int8")
    return root / "ir"


@pytest.mark.parametrize("leave", [b"exit\n", b"\x04"])
def test_chat_over_int8_in_a_terminal(ir, leave) -> None:
    master, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CHAT, str(ir)],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(terminal)
        _read_until(master, b"Ask > ")
        os.write(master, b"name three rivers\n")
        assert len(_read_until(master, b"Ask > ")) > 20
        os.write(master, leave)
        assert b"left alpaca" in _read_until(master, b"left alpaca")
    os.close(master)
    assert process.returncode == 0


def _read_until(master: int, expected: bytes) -> bytes:
    seen = b""
    while expected not in seen:
        seen += os.read(master, 4096)
    return seen


def test_an_ir_answers_where_torch_cannot_be_imported(ir, tmp_path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [Path(sys.executable).parent / "intel-ft", "generate", ir, "sum", "--max-new-tokens", "4"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def served(ir):
    """The address of the serving demo's API over the IR."""
    tool = Path(__file__).parents[2] / "tools" / "serve_demo.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, tool, ir], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stderr.readline()
        assert line.startswith("intel_ft at http"), line
        yield line.split()[-1]
        process.terminate()


def _post(api: str, body) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"{api}/chat/completions", data, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_demo_server_answers_as_openai_does(served, ir) -> None:
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.runtimes.language_model import Sampling
    from intel_ft.runtimes.open_model import open_model
    from intel_ft.templates.formats import Message
    from intel_ft.templates.prompt import prompt_tokens

    artifact = resolve(str(ir))
    model = open_model(artifact)
    question = (Message("user", "Return the sum of cost."),)
    prompt = prompt_tokens(model.tokenizer, "alpaca", question, artifact.system_prompt)
    expected = model.generate(prompt, Sampling(max_new_tokens=12))
    messages = [{"role": "user", "content": "Return the sum of cost."}]
    status, body = _post(served, {"messages": messages, "max_tokens": 12})
    answer = json.loads(body)
    assert (status, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert expected.text.strip()
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == len(expected.new_tokens)

    _, body = _post(served, {"messages": messages, "max_tokens": 12, "stream": True})
    *events, done = [line[6:] for line in body.decode().split("\n\n") if line]
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected.text
    assert choices[-1]["finish_reason"] == ("stop" if expected.stopped else "length")


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x" * 5000}]},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"},
        {"messages": ["x"]},
    ],
)
def test_the_demo_server_refuses_nonsense_and_lives(served, body) -> None:
    status, answer = _post(served, body)
    assert status == 400
    assert json.loads(answer)["error"]["message"]
    assert (
        _post(served, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1})[0] == 200
    )


def test_the_demo_server_answers_requests_that_come_together(served) -> None:
    body = {"messages": [{"role": "user", "content": "x " * 40}], "max_tokens": 1}
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for status, _ in pool.map(lambda _: _post(served, body), range(64))]
    assert statuses == [200] * 64
