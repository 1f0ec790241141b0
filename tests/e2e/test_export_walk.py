"""From a run's adapter to an OpenVINO model that chats in a terminal."""

import os
import pty
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from export_fixtures import make_adapter, make_base

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

CHAT = """
import sys
from intel_ft.inference.artifact import resolve
from intel_ft.inference.chat import chat, local_reply
from intel_ft.inference.language_model import Sampling
from intel_ft.inference.open import open_model
from intel_ft.inference.template import prompt_template
artifact = resolve(sys.argv[1])
model = open_model(artifact)
template, _ = prompt_template(artifact, model.tokenizer)
def write(text):
    print(text, end="", flush=True)
chat(local_reply(model, template, Sampling(max_new_tokens=8)), artifact.system_prompt, write=write)
print("left", template)
"""


@pytest.fixture(scope="module")
def ir(tmp_path_factory) -> Path:
    from intel_ft.export.openvino import export

    root = tmp_path_factory.mktemp("walk")
    make_adapter(make_base(root / "base"), root / "run" / "adapter")
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


def _read_until(master: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(master, 4096)
    return seen
