"""A network switch in software, with links of a given rate and latency; see tools/shaped_links.py.

    python tools/slow_switch.py GBIT_PER_S MS PORT PORT ...

PORTs are interfaces of this network namespace (needs CAP_NET_RAW). Links are full duplex. A frame
leaves the switch once its bytes have passed the sender's and the receiver's link, and arrives MS
later. No frame is lost. Frames are as large as TCP makes them, up to 64 KiB, since segmentation is
left to the (virtual) network card. tc's netem would do the same, but few kernels of virtual
machines have it.
"""

import os
import select
import socket
import struct
import sys
import time
from collections import deque

# From linux/if_packet.h and linux/if_ether.h; Python's socket module does not have them.
_VNET_HEADER, _IGNORE_OUTGOING, _ADD_MEMBERSHIP, _PROMISCUOUS = 15, 23, 1, 1
_ALL_PROTOCOLS = 3
_SOL_PACKET = 263
_RECEIVE_BUFFER_FORCE, _SEND_BUFFER_FORCE = 33, 32

_HEADER = 10  # bytes of virtio_net_hdr before a frame: offloaded segmentation and checksums
_LARGEST = _HEADER + 14 + 65536
_BUFFER = 2**26


def port(name: str) -> socket.socket:
    """A raw socket that receives all frames of an interface, and sends frames to it."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    raw.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    raw.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER)
    raw.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, _BUFFER)
    member = struct.pack("iHH8s", socket.if_nametoindex(name), _PROMISCUOUS, 0, b"")
    raw.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
    raw.bind((name, _ALL_PROTOCOLS))
    raw.setblocking(False)
    return raw


def switch(ports: list[socket.socket], seconds_per_byte: float, latency: float) -> None:
    """Forward frames forever."""
    addresses: dict[bytes, socket.socket] = {}
    free = {(end, way): 0.0 for end in ports for way in ("in", "out")}  # when each link is free
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select(ports, [], [], pause)[0]:
            now = time.monotonic()
            frame = source.recv(_LARGEST)
            addresses[frame[_HEADER + 6 : _HEADER + 12]] = source
            receiver = addresses.get(frame[_HEADER : _HEADER + 6])
            for target in [receiver] if receiver else [end for end in ports if end is not source]:
                passed = max(now, free[source, "in"], free[target, "out"])
                passed += len(frame) * seconds_per_byte
                free[source, "in"] = free[target, "out"] = passed
                waiting.append((passed + latency, target, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, frame = waiting.popleft()
            target.send(frame)


def main() -> None:
    """Forward frames between the ports in argv."""
    gbit, ms, *names = sys.argv[1:]
    # Real-time priority: ranks that poll would otherwise keep it from running.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    switch([port(name) for name in names], 8 / (float(gbit) * 1e9), float(ms) / 1e3)


if __name__ == "__main__":
    main()
