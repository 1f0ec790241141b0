"""`intel-ft` as a user starts it, many times and quickly; used by faults and invariants.

Starting Python, torch and Transformers takes seconds, and these tests start a hundred runs. So one
process imports them once (the standard library's fork server) and forks a child for each command.
A child is a process of its own: it has its own stdout, stderr, working folder and environment, runs
`intel_ft.cli.main.main()` on its own `sys.argv`, and can be killed. `installed()` runs the real
script instead; test_resume compares the two.
"""

import functools
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intel_ft import assets
from intel_ft.distributed.launch.launcher import free_port

MODEL = Path(assets.resolve("tiny-python-llama"))
DATA = Path(assets.resolve("docstring-to-python/train.jsonl"))
_ENVIRONMENT = {
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens: these tests have no network
    "TRANSFORMERS_VERBOSITY": "error",  # what cli.main sets before it imports the libraries
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "PASSIVE",  # what cli.main sets on few cores, before torch is imported
}
_lock = threading.Lock()  # multiprocessing polls all children of this process at once


@dataclass(frozen=True)
class Result:
    """How a command ended. `code` is negative, minus the signal, where a signal killed it."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.splitlines()[-1] if self.err else ""


class Running:
    """A command under way."""

    def __init__(self, process: Any, out: Path, err: Path) -> None:
        self.process, self.out, self.err = process, out, err

    @property
    def code(self) -> int | None:
        """None while it runs."""
        with _lock:
            return self.process.exitcode

    def kill(self, number: int) -> None:
        if self.code is None:
            os.kill(self.process.pid, number)

    def wait_until(self, condition: Callable[[], Any], seconds: float = 300) -> bool:
        """True as soon as `condition` holds, False if the command ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.code is not None:
                return False
            assert time.monotonic() < end, f"nothing happened in {seconds} s"
            time.sleep(0.002)
        return True

    def wait(self, seconds: float = 300) -> Result:
        end = time.monotonic() + seconds
        while (code := self.code) is None:
            assert time.monotonic() < end, f"still running after {seconds} s: {self.err}"
            time.sleep(0.01)
        return Result(code, self.out.read_text(), self.err.read_text())


@functools.cache
def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    before = dict(os.environ)
    # In Python 3.11 the server does not get this process's sys.path, and ignores what it lacks.
    os.environ.update(_ENVIRONMENT, PYTHONPATH=os.pathsep.join(sys.path))
    try:
        process = context.Process(target=int)
        process.start()
        process.join()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def start(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    memory: int | None = None,
    file_size: int | None = None,
    stdin: str = "",
    before: Callable[[], Any] | None = None,
) -> Running:
    """Start `intel-ft ARGUMENTS` in `cwd`, with `stdin` to read.

    memory: bytes of address space it may take beyond what it has when it starts; file_size: the
    most bytes that a file it writes may have; before: called first, from a module of support.
    """
    name = f"{random.SystemRandom().getrandbits(64):x}"
    folder = cwd / ".streams"
    folder.mkdir(exist_ok=True)
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    for stream in (out, err):
        stream.touch()  # it may be killed before it opens them
    out.with_suffix(".in").write_text(stdin)
    with _lock:
        process = _fork_server().Process(
            target=_child,
            args=(
                [*map(str, arguments)],
                cwd,
                dict(env or {}),
                out,
                err,
                memory,
                file_size,
                before,
            ),
            daemon=True,
        )
        process.start()
    return Running(process, out, err)


def start_ranks(
    count: int, *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> list[Running]:
    """Start `intel-ft ARGUMENTS` as `count` ranks on this host, with the variables of torchrun."""
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    return [
        start(
            *arguments,
            cwd=cwd,
            env=dict(env or {}) | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def run(*arguments: str | Path, cwd: Path, seconds: float = 300, **options: Any) -> Result:
    """Run `intel-ft ARGUMENTS` in `cwd` to its end; options as for `start`."""
    return start(*arguments, cwd=cwd, **options).wait(seconds)


def installed(*arguments: str | Path, cwd: Path) -> Result:
    """Run the installed `intel-ft` script, in a fresh process, to its end."""
    return _fresh([Path(sys.executable).parent / "intel-ft", *arguments], cwd)


def unforked(*arguments: str | Path, cwd: Path) -> Result:
    """Run `python -m intel_ft ARGUMENTS` in a fresh process: CUDA works in no forked one."""
    return _fresh([sys.executable, "-m", "intel_ft", *arguments], cwd)


def _fresh(command: list[str | Path], cwd: Path) -> Result:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def _child(
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    out: Path,
    err: Path,
    memory: int | None,
    file_size: int | None,
    before: Callable[[], Any] | None,
) -> None:
    assert "support.preloaded" in sys.modules, "the fork server has not imported it"
    from intel_ft.cli.main import main

    os.chdir(cwd)
    del os.environ["PYTHONPATH"]
    os.environ.update(env)
    sys.stdin = out.with_suffix(".in").open(encoding="utf-8")  # multiprocessing has closed it
    os.dup2(sys.stdin.fileno(), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    if memory is not None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, resource.RLIM_INFINITY))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    sys.argv = ["intel-ft", *arguments]
    if before is not None:
        before()
    main()


def shortest_examples(path: Path, start: int, end: int) -> Path:
    """Write the shipped training examples that rank `start` to `end` by length to `path`."""
    rows = sorted(DATA.read_text(encoding="utf-8").splitlines(), key=len)[start:end]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def write_config(path: Path, **sections: Mapping[str, Any]) -> Path:
    """Write a run's YAML: the tiny model on train.jsonl beside it, 4 examples a step, 1 thread."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": str(MODEL)},
        "data": {"train": "train.jsonl"},
        "method": {"r": 4},
        "train": {
            "max_steps": 4,
            "global_batch_size": 4,
            "max_tokens_per_row": 1024,
            "save_steps": 2,
            "keep_checkpoints": 3,
            "report_to": [],
        },
        "backend": {"threads": 1},
        "output": {"directory": "out"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | dict(section)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    text = (run_folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
