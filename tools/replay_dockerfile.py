"""Replays a Dockerfile's steps in a clean root folder, without a container engine (needs root).

    debootstrap --variant=minbase --include=python3-venv,ca-certificates bookworm ROOT
    python tools/replay_dockerfile.py docker/inference.Dockerfile ROOT WORK
    python tools/replay_dockerfile.py docker/inference.Dockerfile ROOT WORK --run --help

ROOT takes the place of every base image and is not changed: each stage is an overlay in WORK. FROM,
ARG, ENV, WORKDIR, COPY, RUN, USER, ENTRYPOINT and CMD are supported, with the caller's PIP_*
settings and network. There is no isolation by cgroups or namespaces. `--run` starts the last
stage's entrypoint as its user, with the arguments that follow.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """One FROM: its layers (topmost first), and the state that its instructions set."""

    name: str
    folder: Path
    layers: list[Path]
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """Where the stage is mounted."""
        return self.folder / "root"

    def mount(self, binds: list[str]) -> None:
        """Mount the overlay, and /proc, /sys, /dev and the `binds` inside it."""
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lower = ":".join(map(str, self.layers))
        options = f"lowerdir={lower},upperdir={self.folder}/upper,workdir={self.folder}/work"
        _do("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        for path in ("/proc", "/sys", "/dev", "/dev/shm", "/etc/resolv.conf", *binds):
            inside = self.root / path.lstrip("/")
            if Path(path).is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            else:
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
            _do("mount", "--bind", path, str(inside))

    def run(self, command: list[str], *, user: str | None = None, host: bool = True) -> int:
        """Run a command in the stage, as its user, with its environment; returns the exit code."""
        variables = self.environment | self.arguments
        if host:
            kept = ("PIP_", "SSL_", "REQUESTS_", "http_proxy", "https_proxy", "no_proxy")
            variables |= {k: v for k, v in os.environ.items() if k.startswith(kept)}
        who = user or self.user
        numbers = [] if who == "0" else ["--reuid", who, "--regid", who, "--clear-groups"]
        home = "/root" if who == "0" else "/home/intel-ft"
        variables["HOME"] = home
        assignments = [f"{name}={value}" for name, value in variables.items()]
        inner = ["chroot", str(self.root), "env", "-i", *assignments, "setpriv", *numbers]
        inner += ["sh", "-ec", 'cd "$0"; exec "$@"', self.workdir, *command]
        return subprocess.run(inner, check=False).returncode


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of each step, without comments and with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    steps = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in steps]


def replay(dockerfile: Path, root: Path, work: Path, given: dict[str, str], binds: list[str],
           target: str | None) -> Stage:  # fmt: skip
    """Run the steps up to the end of stage `target`; returns that stage, mounted.

    A step that fails ends the program and prints the step."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, rest in instructions(dockerfile.read_text(encoding="utf-8")):
        if name == "FROM":
            if stage and stage.name == target:
                return stage
            image, *alias = re.split(r"\s+AS\s+", rest)
            stage = _begin(image, alias[0] if alias else f"stage{len(stages)}", stages, root, work)
            stages[stage.name] = stage
            stage.mount(binds)
            continue
        if stage is None:
            raise SystemExit(f"{name}: there is no FROM before it")
        print(f"[{stage.name}] {name} {' '.join(rest.split())}", flush=True)
        _step(stage, name, rest, stages, given)
    if stage is None:
        raise SystemExit(f"{dockerfile}: there is no FROM")
    return stage


def _begin(image: str, name: str, stages: dict[str, Stage], root: Path, work: Path) -> Stage:
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    if image not in stages:
        return Stage(name, folder, [root])
    base = stages[image]
    return Stage(
        name,
        folder,
        [base.folder / "upper", *base.layers],
        dict(base.environment),
        workdir=base.workdir,
        user=base.user,
        entrypoint=base.entrypoint,
        command=base.command,
    )


def _step(
    stage: Stage, name: str, rest: str, stages: dict[str, Stage], given: dict[str, str]
) -> None:
    variables = stage.environment | stage.arguments
    expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], ""), rest)
    if name == "ARG":
        key, _, value = rest.partition("=")
        stage.arguments[key] = given.get(key, value)
    elif name == "ENV":
        stage.environment |= dict(part.split("=", 1) for part in shlex.split(expanded))
    elif name == "WORKDIR":
        stage.workdir = expanded
        (stage.root / expanded.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        stage.user = expanded
    elif name == "COPY":
        _copy(stage, rest.split(), stages)
    elif name == "RUN":
        if code := stage.run(["sh", "-c", rest]):
            raise SystemExit(f"exit code {code} from: {' '.join(rest.split())}")
    elif name in ("ENTRYPOINT", "CMD"):
        setattr(stage, "entrypoint" if name == "ENTRYPOINT" else "command", json.loads(rest))
    else:
        raise SystemExit(f"{name}: this instruction is not supported")


def _copy(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    source = Path()
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *names, to = words
    target = stage.root / (Path(stage.workdir) / to).as_posix().lstrip("/")
    for name in names:
        origin = source / name.lstrip("/")
        into = target / origin.name if to.endswith("/") else target
        into.parent.mkdir(parents=True, exist_ok=True)
        _do("cp", "-aT", str(origin), str(into))


def _do(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    """Replay the Dockerfile, and with --run start the image's entrypoint."""
    parser = argparse.ArgumentParser(description="Replay a Dockerfile in a clean root folder.")
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("root", type=Path, help="a clean root folder, such as debootstrap creates")
    parser.add_argument("work", type=Path, help="folder for the stages")
    parser.add_argument("--target", help="last stage to build; default: all")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH")
    parser.add_argument("--run", nargs=argparse.REMAINDER, default=None)
    options = parser.parse_args()
    given = dict(part.split("=", 1) for part in options.build_arg)
    work = options.work.resolve()
    try:
        stage = replay(options.dockerfile, options.root.resolve(), work, given, options.bind,
                       options.target)  # fmt: skip
        if options.run is not None:
            command = [*stage.entrypoint, *(options.run or stage.command)]
            raise SystemExit(stage.run(command, host=False))
    finally:
        for folder in work.iterdir():
            if os.path.ismount(folder / "root"):
                _do("umount", "--recursive", str(folder / "root"))


if __name__ == "__main__":
    main()
