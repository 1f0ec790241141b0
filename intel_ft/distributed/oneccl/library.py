"""oneCCL's C API, found and loaded with ctypes; called from oneccl.group.

The API is NCCL's with other names (oneapi/ccl.h in the wheel oneccl-devel). All calls return when
done. Errors become RuntimeError with oneCCL's own text.
"""

import ctypes
import os
import sys
from ctypes import c_char, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

OLDEST = 20220100  # the first version whose CPU plugin has this API
INSTALL = "install it with `pip install oneccl==2022.1.2`, or set CCL_ROOT to an oneAPI one"

_PLUGIN = "libccl_legacy_cpu.so"
_ONEAPI = Path("/opt/intel/oneapi")


class UniqueId(ctypes.Structure):
    """What rank 0 gives to the others so that they find each other."""

    _fields_ = (("data", c_char * 4096),)


Handle = c_void_p  # of a communicator
_TYPE, _OPERATION, _RANK, _STREAM = c_int, c_int, c_int, c_void_p
_TO = (c_void_p, c_void_p, c_size_t, _TYPE)  # send buffer, receive buffer, elements, their type
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "GetVersion": (c_void_p,),
    "GetUniqueId": (c_void_p,),
    "CommInitRank": (c_void_p, c_size_t, UniqueId, _RANK),
    "CommFinalize": (Handle,),
    "CommDestroy": (Handle,),
    "AllReduce": (*_TO, _OPERATION, Handle, _STREAM),
    "Reduce": (*_TO, _OPERATION, _RANK, Handle, _STREAM),
    "ReduceScatter": (*_TO, _OPERATION, Handle, _STREAM),
    "Broadcast": (*_TO, _RANK, Handle, _STREAM),
    "AllGather": (*_TO, Handle, _STREAM),
    "AllToAll": (*_TO, Handle, _STREAM),
}


class Library:
    """The loaded libraries; `call` is the whole interface."""

    def __init__(self, folders: list[Path], *, mpi: bool) -> None:
        self._ccl = _load("libccl.so.2", folders)
        self._mpi = _load("libmpi.so.12", folders) if mpi else None
        # oneCCL opens these by name: a library that is loaded already is found without a path.
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
        """Call `onecclNAME`; RuntimeError where it says no."""
        result = self._functions[name](*arguments)
        if result:
            text = self._ccl.onecclGetErrorString(result).decode(errors="replace")
            raise RuntimeError(f"oneCCL: {name} failed: {text} ({result})")

    def version(self) -> int:
        """Such as 20220100 for 2022.1."""
        found = c_int()
        self.call("GetVersion", ctypes.byref(found))
        return found.value

    def finalize_mpi(self) -> None:
        """End MPI if oneCCL left it running: a launcher calls an exit without it a crash."""
        if self._mpi is None:
            return
        begun, ended = c_int(), c_int()
        self._mpi.MPI_Initialized(ctypes.byref(begun))
        self._mpi.MPI_Finalized(ctypes.byref(ended))
        if begun.value and not ended.value:
            self._mpi.MPI_Finalize()


@cache
def library() -> Library:
    """oneCCL, loaded once. Raises RuntimeError that says what is missing and how to get it."""
    folders = _folders()
    if not folders:
        raise RuntimeError(f"oneCCL ({_PLUGIN}) was not found: {INSTALL}")
    # Before its first call, which else takes the GPU's plugin where the loader's path has one.
    os.environ.setdefault("CCL_PLUGIN", "ONECCL_LEGACY_CPU")
    try:
        loaded = Library(folders, mpi=under_intel_mpi())
    except (OSError, AttributeError) as error:
        text = f"oneCCL in {folders[0]} cannot be loaded ({error}): {INSTALL}"
        raise RuntimeError(text) from error
    if loaded.version() < OLDEST:
        raise RuntimeError(f"oneCCL {loaded.version()} in {folders[0]} is too old: {INSTALL}")
    return loaded


def why_not_usable() -> str | None:
    """What is missing, or None where the backend can be used."""
    try:
        library()
    except RuntimeError as error:
        return str(error)
    return None


def under_intel_mpi() -> bool:
    """Whether Intel MPI's (or MPICH's) mpirun started this process, so that MPI can carry it.

    Open MPI's cannot: oneCCL is built against MPICH's binary interface, and goes over TCP there.
    Neither can srun, which may set PMI_RANK (`--mpi=pmi2`), but never mpirun's MPI_LOCALNRANKS.
    """
    environment = os.environ
    srun = "SLURM_STEP_NUM_TASKS" in environment and "MPI_LOCALNRANKS" not in environment
    return "PMI_RANK" in environment and not srun


def _folders() -> list[Path]:
    """Where libraries are: the folder that has oneCCL's CPU plugin, then those it needs more."""
    roots = [os.environ.get("CCL_ROOT"), sys.prefix, _ONEAPI / "ccl/latest"]
    candidates = [Path(root) / "lib" for root in roots if root]
    found = [folder for folder in candidates if (folder / _PLUGIN).exists()][:1]
    others = [os.environ.get("I_MPI_ROOT"), _ONEAPI / "mpi/latest", _ONEAPI / "compiler/latest"]
    return found and [*found, *(Path(root) / "lib" for root in others if root)]


def set_environment() -> None:
    """What oneCCL reads when the first communicator is made; what the user set stays. Not earlier:
    a process that only asks `why_not_usable` must not decide for those that it starts.
    """
    folder, mpi = _folders()[0], under_intel_mpi()
    values = {
        "CCL_LOG_LEVEL": "error",
        # oneccl.calls has a thread for it; one more that polls makes all wait where cores are few.
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
    """Load a library and first what it needs, so that no loader path has to be set."""
    path = next((str(folder / name) for folder in folders if (folder / name).exists()), name)
    while True:
        try:
            return ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError as error:
            missing = str(error).partition(":")[0]
            if name in {path, missing} or not any((f / missing).exists() for f in folders):
                raise
            _load(missing, folders)
