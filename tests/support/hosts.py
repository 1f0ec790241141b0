"""A cluster of several hosts on one machine, made of Linux namespaces.

Each host has its own network, host name, processes, shared memory and sshd, which is its process 1;
all share one filesystem. They are connected by a bridge in a separate namespace, so nothing is
visible outside, and any number of clusters can exist at once. As on many real clusters, each host
also has a docker0, with the same address on all hosts and no route. Nothing needs to be cleaned up:
the kernel ends a host with its process 1, and that with the process that created it, even if that
is killed.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_NEEDED = ("ip", "tc", "nsenter", "unshare", "setpriv", "ssh-keygen", "sshd")
_BOOT = """\
hostname {name}
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir /run/sshd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder} /etc/ssh
while ! ip link set eth0 up 2>/dev/null; do sleep 0.01; done
ip link set lo up
ip address add {address}/24 dev eth0
ip link add docker0 type veth peer name docker
ip link set docker0 up
ip link set docker up
ip address add 172.17.0.1/16 dev docker0
exec {sshd} -D
"""
_SSHD = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/user_key.pub
StrictModes no
PasswordAuthentication no
MaxStartups 100
"""
_SSH = """\
IdentityFile /etc/ssh/user_key
GlobalKnownHostsFile /etc/ssh/known_hosts
BatchMode yes
ConnectTimeout 5
"""


def why_not() -> str | None:
    """What this machine lacks to create hosts, and how to install it; None if nothing."""
    if os.geteuid() != 0:
        return "hosts are made of namespaces, which needs root"
    missing = [name for name in _NEEDED if _tool(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: make cluster"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """One host; `pid` is its process 1 as seen from outside."""

    name: str
    address: str
    pid: int

    def start(self, command: Sequence[str | Path], **options: Any) -> "subprocess.Popen[str]":
        """Start a command on this host, as in a login there.

        The returned process is nsenter, which exits as the command does; its child is the command.
        """
        # The working folder by its path there: as it is mounted outside, it is on another device,
        # which matters when a file is moved.
        inside = ["env", f"--chdir={options.pop('cwd', '/')}"]
        enter = ["nsenter", "--target", str(self.pid), "--all", *inside]
        return subprocess.Popen([*enter, *map(str, command)], text=True, **options)

    def run(self, *command: str | Path, **options: Any) -> str:
        """Run a command on this host to its end; its stdout."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        with self.start(command, **options) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, f"{command}: {out}{err}"
        return out

    def processes(self) -> dict[int, str]:
        """The command line of each process on this host except process 1, by PID outside."""
        namespace = _namespace(self.pid)
        return {
            pid: command
            for pid, command in _commands().items()
            if namespace is not None and pid != self.pid and _namespace(pid) == namespace
        }


@dataclass(frozen=True)
class Cluster:
    """Hosts, and the network between them.

    switch: the process that holds the namespace of the bridge. disk: a small filesystem (64 MiB)
    that all hosts share.
    """

    hosts: tuple[Host, ...]
    switch: int
    disk: Path

    @property
    def disk_from_outside(self) -> Path:
        """The path of `disk` as seen by this process."""
        return Path(f"/proc/{self.switch}/root{self.disk}")

    def link_down(self, host: Host) -> None:
        """Disconnect the host."""
        self._at_switch("ip", "link", "set", host.name, "down")

    def link_up(self, host: Host) -> None:
        """Reconnect the host."""
        self._at_switch("ip", "link", "set", host.name, "up")

    def shape(self, host: Host, gbit: float) -> None:
        """Limit its link to this rate in each direction."""
        limit = ["root", "tbf", "rate", f"{gbit}gbit", "burst", "512k", "latency", "20ms"]
        self._at_switch("tc", "qdisc", "replace", "dev", host.name, *limit)
        host.run("tc", "qdisc", "replace", "dev", "eth0", *limit)

    def _at_switch(self, *command: str) -> None:
        subprocess.run(["nsenter", "--target", str(self.switch), "--net", *command], check=True)


@contextmanager
def cluster(folder: Path, number: int) -> Iterator[Cluster]:
    """That many hosts, node1 and so on, which connect to each other over ssh without a prompt."""
    etc = folder / "etc-ssh"
    etc.mkdir(parents=True)
    names = {f"node{i}": f"10.77.0.{i}" for i in range(1, number + 1)}
    _write_settings(etc, names)
    started = []
    try:
        disk = folder / "disk"
        disk.mkdir()
        mount = f"mount -t tmpfs -o size=64m disk {disk}; exec sleep infinity"
        switch = _held(["unshare", "--net", "--mount", "sh", "-ec", mount])
        started.append(switch)
        wait(lambda: _commands().get(switch.pid, "").startswith("sleep"))
        inside = ["nsenter", "--target", str(switch.pid), "--net", "ip"]
        subprocess.run([*inside, "link", "add", "bridge", "type", "bridge"], check=True)
        subprocess.run([*inside, "link", "set", "bridge", "up"], check=True)
        hosts = []
        for name, address in names.items():
            boot = _BOOT.format(name=name, folder=etc, address=address, sshd=_tool("sshd"))
            kinds = ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"]
            fork = ["--fork", "--kill-child", "sh", "-ec", boot]
            outer = _held(
                ["nsenter", f"--target={switch.pid}", "--mount", "unshare", *kinds, *fork]
            )
            started.append(outer)
            wait(lambda outer=outer: _children(outer.pid))
            pid = _children(outer.pid)[0]
            veth = ["link", "add", name, "type", "veth", "peer", "name", "eth0"]
            subprocess.run([*inside, *veth, "netns", str(pid)], check=True)
            subprocess.run([*inside, "link", "set", name, "master", "bridge", "up"], check=True)
            hosts.append(Host(name, address, pid))
        for host in hosts:
            wait(lambda host=host: "sshd" in _commands().get(host.pid, ""))
            wait(lambda host=host: _listens(host.pid, 22))
        yield Cluster(tuple(hosts), switch.pid, disk)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _write_settings(etc: Path, names: dict[str, str]) -> None:
    for key in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / key]
        subprocess.run(command, check=True)
    lines = [f"{address} {name}\n" for name, address in names.items()]
    (etc / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
    public = (etc / "host_key.pub").read_text()
    (etc / "known_hosts").write_text(f"{','.join([*names, *names.values()])} {public}")
    (etc / "sshd_config").write_text(_SSHD)
    (etc / "ssh_config").write_text(_SSH)


def _held(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a process that the kernel kills when this one exits."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def wait(condition: Callable[[], Any], seconds: float = 60, poll: float = 0.005) -> None:
    """Wait until the condition holds. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(poll)


def _namespace(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def _commands() -> dict[int, str]:
    """The command lines of all live processes, by PID."""
    processes = psutil.process_iter(["cmdline"])
    return {p.pid: " ".join(p.info["cmdline"]) for p in processes if p.info["cmdline"]}


def _listens(pid: int, port: int) -> bool:
    """Whether a process listens in the network namespace of `pid`; psutil reads only its own."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") for line in lines)


def kill(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> None:
    """Send a signal to a command that Host.start started."""
    for child in _children(process.pid):
        os.kill(child, number)
