"""Frozen weights in memory that processes map instead of each holding a copy.

A `Writer` puts weights into a file in the layout that multiplies, tensor after tensor; any process
that opens the file with a `Reader` gets the same weights on mapped, copy-on-write pages, which all
of them share until one is written to. Called from models.shared_base.

The file: tensors, each entry on pages of its own; an index as JSON; the SHA-256 of the index; its
length, 8 bytes.
"""

import ctypes
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from weakref import finalize

import torch
from torch import Tensor

from intel_ft.kernels.gemm import tiles, vnni
from intel_ft.kernels.grouped import Int8Matrices, Int8Tiles
from intel_ft.layers.int8 import Int8Matrix, Int8Weight
from intel_ft.layers.nf4 import NF4Weight
from intel_ft.layers.own_products import TileWeight, VnniWeight
from intel_ft.layers.prepacked import PrepackedMatrix, PrepackedWeight

T = TypeVar("T")
_Memory = ctypes.Array[ctypes.c_char]

_PAGE = mmap.ALLOCATIONGRANULARITY
_ALIGNMENT = 64  # bytes, as torch aligns tensors: a cache line
_HASH, _LENGTH = 32, 8  # bytes after the index
_BLOCK, _CHUNK = 4096, 2**28  # bytes of a sum, and those that are summed up at a time
_KINDS: dict[str, Any] = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (
        *(TileWeight, tiles.Matrix, VnniWeight, vnni.Matrix),
        *(PrepackedWeight, PrepackedMatrix, Int8Weight, Int8Matrix, NF4Weight),
        *(Int8Matrices, Int8Tiles),
    )
}
"""The only classes that a file can contain."""

_QUANT_STATE = ("absmax", "shape", "code", "blocksize", "quant_type", "dtype", "offset", "state2")
"""The arguments of bitsandbytes' QuantState."""


class Keep(Protocol):
    """Where converted weights come from: made now, or mapped because another process made them."""

    def __call__(self, key: str, make: Callable[[], T]) -> T:
        """The value called `key`, the result of `make` or its equal."""
        ...


class _Private:
    def __call__(self, key: str, make: Callable[[], T]) -> T:
        """See Keep."""
        return make()


private: Keep = _Private()
"""The `Keep` of a process that shares nothing."""


class Writer:
    """A `Keep` that writes each value to an open file and returns it mapped from there.

    writing: a context in which to write. After a failed write (`failed`) the file is useless, and
    values are private.
    """

    def __init__(
        self,
        descriptor: int,
        facts: Mapping[str, Any],
        writing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.descriptor, self._facts, self._end = descriptor, dict(facts), 0
        self._writing = writing
        self._entries: dict[str, Any] = {}
        self.failed: str | None = None

    def __call__(self, key: str, make: Callable[[], T]) -> T:
        """See Keep."""
        value = make()
        if self.failed is not None:
            return value
        start, self._end = self._end, self._end
        try:
            with self._writing():
                tree = _encode(value, lambda tensor: self._write(tensor) - start)
            size, self._end = self._end - start, -(-self._end // _PAGE) * _PAGE
            os.ftruncate(self.descriptor, self._end)
            entry = {"start": start, "size": size, "tree": tree}
            memory = _map(self.descriptor, entry)
            self._entries[key] = entry
            return cast("T", _decode(tree, memory))
        except OSError as error:  # such as a full disk
            self.failed = error.strerror or str(error)
        except NotImplementedError as error:
            self.failed = str(error)
        return value

    def finish(self, *, verifiable: bool = False) -> None:
        """Write the index. Raises OSError where that fails.

        verifiable: with a digest of all weights, so that `Reader.is_whole` can tell.
        """
        index = {"facts": self._facts, "entries": self._entries, "end": self._end}
        if verifiable:
            index["digest"] = _digest(self.descriptor, self._end)
        text = json.dumps(index).encode()
        trailer = hashlib.sha256(text).digest() + len(text).to_bytes(_LENGTH, "little")
        _write_all(self.descriptor, text + trailer, self._end)

    def _write(self, tensor: Tensor) -> int:
        """Append a contiguous tensor; returns where it starts."""
        start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        if tensor.is_mkldnn:
            address, size = torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
        else:
            address, size = tensor.data_ptr(), tensor.nbytes
        if size:
            memory = (ctypes.c_char * size).from_address(address)
            _write_all(self.descriptor, memoryview(memory), start)
        self._end = start + size
        return start


class Reader:
    """A `Keep` that maps what a `Writer` wrote, and makes what is missing."""

    def __init__(self, descriptor: int, index: Mapping[str, Any]) -> None:
        self.descriptor, self._index = descriptor, index

    @classmethod
    def open(cls, path: Path, facts: Mapping[str, Any]) -> "Reader | None":
        """The file's reader, None unless it has these facts and only this user can change it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        index = _index(descriptor)
        if index is None or index["facts"] != json.loads(json.dumps(facts)):
            os.close(descriptor)
            return None
        return cls(descriptor, index)

    def __call__(self, key: str, make: Callable[[], T]) -> T:
        """See Keep."""
        entry = self._index["entries"].get(key)
        if entry is None:
            return make()
        return cast("T", _decode(entry["tree"], _map(self.descriptor, entry)))

    def is_whole(self) -> bool:
        """Whether all weights are as they were written, which is read; False without a digest."""
        found = self._index.get("digest")
        return found is not None and _digest(self.descriptor, self._index["end"]) == found


def _index(descriptor: int) -> dict[str, Any] | None:
    """The index of a whole file that this user alone can write; None for any other."""
    status = os.fstat(descriptor)
    end = status.st_size - _HASH - _LENGTH
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or end < 0:
        return None
    trailer = os.pread(descriptor, _HASH + _LENGTH, end)
    start = end - int.from_bytes(trailer[_HASH:], "little")
    if start < 0:
        return None
    text = os.pread(descriptor, end - start, start)
    if hashlib.sha256(text).digest() != trailer[:_HASH]:
        return None
    index: dict[str, Any] = json.loads(text)
    return index if index["end"] == start else None


def _map(descriptor: int, entry: Mapping[str, Any]) -> _Memory:
    """The pages of an entry: private ones, so that writing to them never reaches the file.

    Python's mmap would keep a descriptor open for each of them. Raises OSError.
    """
    size, protection = entry["size"], mmap.PROT_READ | mmap.PROT_WRITE
    if not size:
        return (ctypes.c_char * 0)()
    libc = _libc()
    address = libc.mmap(None, size, protection, mmap.MAP_PRIVATE, descriptor, entry["start"])
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory: _Memory = (ctypes.c_char * size).from_address(address)
    finalize(memory, libc.munmap, address, size)  # when no tensor refers to it
    return memory


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    number, size, place = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.argtypes = (place, size, number, number, number, ctypes.c_long)
    libc.mmap.restype = place
    libc.munmap.argtypes = (place, size)
    return libc


def _digest(descriptor: int, end: int) -> str:
    """A hash of the sums of all blocks of a file's first `end` bytes, as 64-bit integers.

    It reads them as fast as memory is. A changed value, a lost page and exchanged pages change it.
    """
    digest = hashlib.sha256()
    for start in range(0, end, _CHUNK):
        memory = _map(descriptor, {"start": start, "size": min(_CHUNK, end - start)})
        blocks = torch.frombuffer(memory, dtype=torch.int64).view(-1, _BLOCK // 8)
        digest.update(blocks.sum(1).numpy().tobytes())
    return digest.hexdigest()


def _write_all(descriptor: int, data: bytes | memoryview, start: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        written = os.pwrite(descriptor, view[: 2**30], start)
        view, start = view[written:], start + written


def _encode(value: Any, write: Callable[[Tensor], int]) -> Any:
    """`value` as JSON, its tensors written by `write`, which returns where."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": _name(value)}
    if isinstance(value, list | tuple):  # torch.Size is one
        kind = {torch.Size: "shape", tuple: "tuple", list: "list"}[type(value)]
        return {kind: [_encode(one, write) for one in value]}
    if isinstance(value, Tensor):
        return _encode_tensor(value.detach(), write)
    if type(value).__name__ == "QuantState":
        parts = {name: getattr(value, name) for name in _QUANT_STATE}
        return {"quant state": {name: _encode(part, write) for name, part in parts.items()}}
    name = f"{type(value).__module__}.{type(value).__name__}"
    if is_dataclass(value) and name in _KINDS:
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"kind": name, "fields": {key: _encode(part, write) for key, part in parts.items()}}
    raise NotImplementedError(f"{name} cannot be shared")


def _encode_tensor(tensor: Tensor, write: Callable[[Tensor], int]) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(tensor.shape), "of": _name(tensor.dtype)}
    if not tensor.is_mkldnn:
        return {"tensor": write(tensor.contiguous()), **facts}
    if _from_blob() is None:
        raise NotImplementedError("this version of torch cannot map oneDNN's layouts")
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md(tensor)
    return {"oneDNN": write(tensor), **facts, "layout": bytes(layout.tolist()).hex()}


def _decode(tree: Any, memory: _Memory) -> Any:
    """The value that `_encode` wrote."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return _tensor(tree, memory)
    if "oneDNN" in tree:
        return _opaque_tensor(tree, memory)
    for name, kind in (("shape", torch.Size), ("tuple", tuple), ("list", list)):
        if name in tree:
            return kind(_decode(one, memory) for one in tree[name])
    if "dtype" in tree:
        return getattr(torch, tree["dtype"])
    return _decode_object(tree, memory)


def _decode_object(tree: dict[str, Any], memory: _Memory) -> Any:
    if "quant state" in tree:
        from bitsandbytes.functional import QuantState

        return QuantState(
            **{name: _decode(part, memory) for name, part in tree["quant state"].items()}
        )
    parts = {name: _decode(part, memory) for name, part in tree["fields"].items()}
    return _KINDS[tree["kind"]](**parts)


def _tensor(tree: dict[str, Any], memory: _Memory) -> Tensor:
    shape, dtype = torch.Size(tree["shape"]), getattr(torch, tree["of"])
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=tree["tensor"])
    return flat.view(shape)


def _opaque_tensor(tree: dict[str, Any], memory: _Memory) -> Tensor:
    """A tensor in oneDNN's layout, by the function with which AOTInductor maps its constants."""
    from_blob, layout, sizes = _from_blob(), bytes.fromhex(tree["layout"]), tree["shape"]
    assert from_blob is not None  # _encode_tensor had it
    handle, library = ctypes.c_void_p(), _library()
    dimensions = (ctypes.c_int64 * len(sizes))(*sizes)
    error = from_blob(
        ctypes.c_void_p(ctypes.addressof(memory) + tree["oneDNN"]),
        ctypes.c_int64(len(sizes)),
        dimensions,
        (ctypes.c_int64 * len(sizes))(*torch.empty(sizes, device="meta").stride()),
        ctypes.c_int64(0),
        getattr(library, f"aoti_torch_dtype_{tree['of']}")(),
        library.aoti_torch_device_type_cpu(),
        0,
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        layout,
        ctypes.c_int64(len(layout)),
    )
    if error:
        raise RuntimeError("torch cannot map a weight in oneDNN's layout")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    capsule = new_capsule(handle, None, None)
    tensor: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
    tensor.mapped = memory  # type: ignore[attr-defined]  # it does not own its memory
    return tensor


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))


@cache
def _from_blob() -> Any:
    """The C function that makes a tensor in oneDNN's layout of memory; None in other versions."""
    try:
        return _library().aoti_torch_create_tensor_from_blob_v2
    except (OSError, AttributeError):
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
