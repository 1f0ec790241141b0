"""Runs a command on the first of several hosts, connected by links of a given rate and latency.

    python tools/shaped_links.py --gbit 1 --ms 0.1 -- intel-ft bench collectives --hosts node1,node2

The hosts are network namespaces of this machine with an sshd each (tests/support/hosts.py; needs
root), the links are made by tools/slow_switch.py. Before the command starts, the links' measured
rate and latency are printed on stderr; a machine with few cores does not reach the given rate.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.hosts import Cluster, Host, cluster, why_not

_PROBE = """\
import socket, sys, time
address, listening = sys.argv[1], len(sys.argv) > 2
if listening:
    server = socket.create_server((address, 9000))
    print(flush=True)
    end = server.accept()[0]
else:
    end = socket.create_connection((address, 9000))
end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips, size, chunk = 50, 2**27, bytes(2**20)
if listening:
    for _ in range(trips):
        end.sendall(end.recv(1))
    while size > 0:
        size -= len(end.recv(2**20))
    end.sendall(b"x")
else:
    times = []
    for _ in range(trips):
        start = time.perf_counter()
        end.sendall(b"x"), end.recv(1)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(size // len(chunk)):
        end.sendall(chunk)
    end.recv(1)
    rate = size * 8e-9 / (time.perf_counter() - start)
    print(f"round trip {sorted(times)[trips // 2] * 1e3:.3f} ms, {rate:.2f} Gbit/s")
"""


def slow_links(hosts: Cluster, gbit: float, ms: float) -> "subprocess.Popen[bytes]":
    """Replace the cluster's bridge by the slow switch, until the process is killed."""
    inside = ["nsenter", "--target", str(hosts.switch), "--net"]
    names = [host.name for host in hosts.hosts]
    for name in names:
        subprocess.run([*inside, "ip", "link", "set", name, "nomaster"], check=True)
    program = Path(__file__).with_name("slow_switch.py")
    command = [*inside, sys.executable, str(program), str(gbit), str(ms), *names]
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])


def measured(first: Host, second: Host) -> str:
    """Measure the link's round trip and rate over a TCP connection."""
    command = [sys.executable, "-c", _PROBE, second.address]
    with second.start([*command, "listen"], stdout=subprocess.PIPE) as listening:
        assert listening.stdout is not None
        listening.stdout.readline()
        return first.run(*command).strip()


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gbit", type=float, required=True, help="Gbit/s in each direction")
    parser.add_argument("--ms", type=float, required=True, help="latency in one direction")
    parser.add_argument("--hosts", type=int, default=2, help="number of hosts")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if problem := why_not():
        print(f"error: {problem}", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder), arguments.hosts) as hosts:
        switch = slow_links(hosts, arguments.gbit, arguments.ms)
        try:
            result = measured(hosts.hosts[0], hosts.hosts[1])
            print(
                f"requested {arguments.gbit:g} Gbit/s and {arguments.ms:g} ms; measured {result}",
                file=sys.stderr,
            )
            return hosts.hosts[0].start(arguments.command).wait()
        finally:
            switch.kill()
            switch.wait()


if __name__ == "__main__":
    sys.exit(main())
