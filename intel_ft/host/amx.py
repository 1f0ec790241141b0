"""Linux's permission to use AMX tiles, which each process requests once."""

import ctypes
import os
import platform

# arch/x86/include/uapi/asm/prctl.h and Documentation/arch/x86/xstate.rst of Linux
_ARCH_PRCTL = 158  # the system call's number on x86-64
_GET_PERMITTED, _REQUEST = 0x1022, 0x1023
_TILE_DATA = 18  # the state component


def tile_permission() -> str:
    """Request AMX tile data from Linux, as oneDNN does: "granted", or the reason why not."""
    if platform.machine() != "x86_64":
        return "not an x86-64 system"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_REQUEST), ctypes.c_long(_TILE_DATA)):
        return os.strerror(ctypes.get_errno())
    permitted = ctypes.c_uint64()
    libc.syscall(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_GET_PERMITTED), ctypes.byref(permitted))
    return "granted" if permitted.value >> _TILE_DATA & 1 else "requested, but not permitted"
