"""`generate` through `transformers serve` gives the same answers as the folder does locally."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from support.harness import MODEL, run
from transformers.utils.import_utils import is_serve_available

if not is_serve_available():
    pytest.skip("needs fastapi, uvicorn and openai: transformers[serving]", allow_module_level=True)

# The shipped model continues code: with a template that adds almost nothing its answers are stable.
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of a server, and the folder that it serves: the shipped model with a template."""
    folder = tmp_path_factory.mktemp("serve") / "model"
    shutil.copytree(MODEL, folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "bfloat16"]
    log = (folder.parent / "log").open("wb")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, folder.parent / "log")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(f"no answer from {url}: {log.read_text()}")


def test_a_file_of_prompts_here_and_there(served, tmp_path) -> None:
    url, folder = served
    (tmp_path / "p.txt").write_text("def add(a, b):\nclass Stack(object):\n")
    common = ["--input", "p.txt", "--max-new-tokens", "16"]
    there = ["--server", url, "--model", str(folder), "--batch-size", "2", "-o", "there.jsonl"]
    result = run("generate", *there, *common, cwd=tmp_path, seconds=180)
    assert result.code == 0, result.err
    result = run("generate", folder, *common, "--batch-size", "1", "-o", "here.jsonl", cwd=tmp_path)
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "there.jsonl").read_text().splitlines()]
    here = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    answers = [(one["prompt"], one["text"], one["stopped"]) for one in lines]
    assert answers == [(one["prompt"], one["text"], one["stopped"]) for one in here]
    assert all(one["new_tokens"] == 16 for one in lines)


def test_chat_streams_from_it(served, tmp_path) -> None:
    url, folder = served
    from intel_ft.inference.server import Server
    from intel_ft.runtimes.language_model import Sampling
    from intel_ft.templates.formats import Message

    pieces: list[str] = []
    text = Server(url, str(folder), 120).stream(
        (Message("user", "def add(a, b):"),), None, Sampling(max_new_tokens=12), pieces.append
    )
    assert text and "".join(pieces) == text and len(pieces) > 1


def test_what_it_does_not_know_is_its_own_line(served, tmp_path) -> None:
    """It refuses top_k, and has no /v1/completions."""
    url, folder = served
    ask = ["generate", "hi", "--server", url, "--model", str(folder)]
    result = run(*ask, "--temperature", "0.5", "--top-k", "3", cwd=tmp_path)
    assert result.code == 2 and "top_k" in result.last_line
    result = run(*ask, "--template", "alpaca", cwd=tmp_path)
    assert result.code == 2 and "completions" in result.last_line
