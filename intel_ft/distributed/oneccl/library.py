"""oneCCL's C API, located and loaded with ctypes.

The API is NCCL's with other names (oneapi/ccl.h in the wheel oneccl-devel). All calls are blocking.
Errors become RuntimeError with oneCCL's text.
"""

import ctypes
import os
import sys
from ctypes import c_char, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

MIN_VERSION = 20220100  # the first one whose CPU plugin has this API
INSTALL = "install it with `pip install oneccl==2022.1.2`, or set CCL_ROOT to that of oneAPI"

_PLUGIN = "libccl_legacy_cpu.so"
_ONEAPI = Path("/opt/intel/oneapi")


class UniqueId(ctypes.Structure):
    """What rank 0 creates and shares, so that the ranks find each other."""

    _fields_ = (("data", c_char * 4096),)


Handle = c_void_p  # of a communicator
_TYPE, _OPERATION, _RANK, _STREAM = c_int, c_int, c_int, c_void_p
_BUFFERS = (c_void_p, c_void_p, c_size_t, _TYPE)  # send, receive, elements, their type
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "GetVersion": (c_void_p,),
    "GetUniqueId": (c_void_p,),
    "CommInitRank": (c_void_p, c_size_t, UniqueId, _RANK),
    "CommFinalize": (Handle,),
    "CommDestroy": (Handle,),
    "AllReduce": (*_BUFFERS, _OPERATION, Handle, _STREAM),
    "Reduce": (*_BUFFERS, _OPERATION, _RANK, Handle, _STREAM),
    "ReduceScatter": (*_BUFFERS, _OPERATION, Handle, _STREAM),
    "Broadcast": (*_BUFFERS, _RANK, Handle, _STREAM),
    "AllGather": (*_BUFFERS, Handle, _STREAM),
    "AllToAll": (*_BUFFERS, Handle, _STREAM),
}


class Library:
    """The loaded libraries; `call` is the whole interface."""

    def __init__(self, folders: list[Path], *, mpi: bool) -> None:
        self._ccl = _load("libccl.so.2", folders)
        self._mpi = _load("libmpi.so.12", folders) if mpi else None
        # oneCCL opens these by name, which finds a library that is already loaded.
        for name in () if mpi else ("libfabric.so.1",):
            _load(name, folders)
        _load(_PLUGIN, folders)
        self._functions = {}
        for name, types in _SIGNATURES.items():
            function = getattr(self._ccl, f"oneccl{name}")
            function.argtypes = types
            self._functions[name] = function
        self._ccl.onecclGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """Call `onecclNAME`; raises RuntimeError if it fails."""
        result = self._functions[name](*arguments)
        if result:
            text = self._ccl.onecclGetErrorString(result).decode(errors="replace")
            raise RuntimeError(f"oneCCL: {name} failed: {text} ({result})")

    def version(self) -> int:
        """The version, such as 20220100 for 2022.1."""
        number = c_int()
        self.call("GetVersion", ctypes.byref(number))
        return number.value

    def finalize_mpi(self) -> None:
        """Finalize MPI if oneCCL left it running: without it launchers report a crash."""
        if self._mpi is None:
            return
        initialized, finalized = c_int(), c_int()
        self._mpi.MPI_Initialized(ctypes.byref(initialized))
        self._mpi.MPI_Finalized(ctypes.byref(finalized))
        if initialized.value and not finalized.value:
            self._mpi.MPI_Finalize()


def end_without_finalizing() -> None:
    """Have this process end, with its own exit code, while MPI_Finalize waits for other ranks.

    mpirun is told what MPI_Finalize would tell it at its end (in MPICH's protocol PMI-1), and ends
    the other ranks otherwise.
    """
    if descriptor := os.environ.get("PMI_FD"):
        os.write(int(descriptor), b"cmd=finalize\n")
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # instead of the destructors of libraries in use


@cache
def library() -> Library:
    """oneCCL, loaded once. Raises RuntimeError with what is missing and how to install it."""
    folders = _folders()
    if not folders:
        raise RuntimeError(f"oneCCL ({_PLUGIN}) was not found: {INSTALL}")
    # Before its first call, which otherwise loads the GPU plugin if the loader's path has one.
    os.environ.setdefault("CCL_PLUGIN", "ONECCL_LEGACY_CPU")
    try:
        loaded = Library(folders, mpi=under_intel_mpi())
    except (OSError, AttributeError) as error:
        text = f"oneCCL in {folders[0]} cannot be loaded ({error}): {INSTALL}"
        raise RuntimeError(text) from error
    if loaded.version() < MIN_VERSION:
        raise RuntimeError(f"oneCCL {loaded.version()} in {folders[0]} is too old: {INSTALL}")
    return loaded


def why_not_usable() -> str | None:
    """What is missing, or None if the backend can be used."""
    try:
        library()
    except RuntimeError as error:
        return str(error)
    return None


def under_intel_mpi() -> bool:
    """Whether Intel MPI's (or MPICH's) mpirun started this process, so that oneCCL can use MPI.

    Under Open MPI it uses TCP, because it is built against MPICH's binary interface. So it does
    under srun, which may set PMI_RANK (`--mpi=pmi2`), but never mpirun's MPI_LOCALNRANKS.
    """
    environment = os.environ
    srun = "SLURM_STEP_NUM_TASKS" in environment and "MPI_LOCALNRANKS" not in environment
    return "PMI_RANK" in environment and not srun


def _folders() -> list[Path]:
    """The folder with oneCCL's CPU plugin, then those with the libraries it depends on; or none."""
    roots = [os.environ.get("CCL_ROOT"), sys.prefix, _ONEAPI / "ccl/latest"]
    candidates = [Path(root) / "lib" for root in roots if root]
    plugin = [folder for folder in candidates if (folder / _PLUGIN).exists()][:1]
    others = [os.environ.get("I_MPI_ROOT"), _ONEAPI / "mpi/latest", _ONEAPI / "compiler/latest"]
    return plugin and [*plugin, *(Path(root) / "lib" for root in others if root)]


def set_environment() -> None:
    """Set the variables that oneCCL reads for its first communicator, unless the user set them.

    Not earlier: a process that only calls `why_not_usable` must not pass them to its children.
    """
    folder, mpi = _folders()[0], under_intel_mpi()
    values = {
        "CCL_LOG_LEVEL": "error",
        # call_thread has a thread for this; a second, polling one slows down all on few cores.
        "CCL_WORKER_OFFLOAD": "0",
        "FI_PROVIDER_PATH": str(folder),
        "I_MPI_ROOT": str(folder.parent),
        "CCL_ATL_TRANSPORT": "mpi" if mpi else "ofi",
    }
    if not mpi:
        values["CCL_PROCESS_LAUNCHER"] = "none"
        values["CCL_LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0")
        values["CCL_LOCAL_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", "1")
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _load(name: str, folders: list[Path]) -> ctypes.CDLL:
    """Load a library after those it depends on, so that no loader path has to be set."""
    path = next((str(folder / name) for folder in folders if (folder / name).exists()), name)
    while True:
        try:
            return ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError as error:
            missing = str(error).partition(":")[0]
            if name in {path, missing} or not any((f / missing).exists() for f in folders):
                raise
            _load(missing, folders)
