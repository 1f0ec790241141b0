"""A network switch with links of a given rate and latency, for tools/shaped_links.py:

python tools/slow_switch.py GBIT_PER_S MS PORT PORT ...

PORTs are interfaces of this network namespace (needs CAP_NET_RAW). A frame leaves when its bytes
have passed the sender's link and the receiver's, both ways at once, and MS later it arrives.
Nothing is lost. Frames are as large as TCP makes them, up to 64 KiB: they carry the segments that a
card would cut. tc's netem would do the same, but few kernels of virtual machines have it.
"""

import os
import select
import socket
import struct
import sys
import time
from collections import deque

# linux/if_packet.h and linux/if_ether.h, where Python's socket lacks them
_VNET_HEADER, _IGNORE_OUTGOING, _ADD_MEMBERSHIP, _PROMISCUOUS = 15, 23, 1, 1
_ALL_PROTOCOLS = 3
_SOL_PACKET = 263
_RECEIVE_BUFFER_FORCE, _SEND_BUFFER_FORCE = 33, 32

_HEADER = 10  # bytes of virtio_net_hdr in front of a frame: what is left to segment and to sum up
_LARGEST = _HEADER + 14 + 65536
_BUFFER = 2**26


def port(name: str) -> socket.socket:
    """All frames that come in at an interface, and a way out of it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    found.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER)
    found.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, _BUFFER)
    member = struct.pack("iHH8s", socket.if_nametoindex(name), _PROMISCUOUS, 0, b"")
    found.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
    found.bind((name, _ALL_PROTOCOLS))
    found.setblocking(False)
    return found


def switch(ports: list[socket.socket], seconds_per_byte: float, latency: float) -> None:
    """Pass frames on, for ever."""
    addresses: dict[bytes, socket.socket] = {}
    free = {(end, way): 0.0 for end in ports for way in ("in", "out")}  # when the link is
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select(ports, [], [], pause)[0]:
            now = time.monotonic()
            frame = source.recv(_LARGEST)
            addresses[frame[_HEADER + 6 : _HEADER + 12]] = source
            known = addresses.get(frame[_HEADER : _HEADER + 6])
            for target in [known] if known else [end for end in ports if end is not source]:
                passed = max(now, free[source, "in"], free[target, "out"])
                passed += len(frame) * seconds_per_byte
                free[source, "in"] = free[target, "out"] = passed
                waiting.append((passed + latency, target, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, frame = waiting.popleft()
            target.send(frame)


def main() -> None:
    """Switch between the ports in argv."""
    gbit, ms, *names = sys.argv[1:]
    # Ranks that poll would keep it from the cores that a real switch does not need.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    switch([port(name) for name in names], 8 / (float(gbit) * 1e9), float(ms) / 1e3)


if __name__ == "__main__":
    main()
