"""The compressed weights in an IR's files, read and written without OpenVINO (models, export).

NNCF stores a weight as three constants: codes of 4 or 8 bits, a scale for each group of a row and,
unless it is symmetric, a zero point for each. The weight is (code - zero point) * scale. Codes stay
mapped from the .bin file, so processes that read the same IR share their memory.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.errors import UserError

_CODES = {"u4": (4, False), "i4": (4, True), "u8": (8, False), "i8": (8, True)}
_SUFFIXES = ("._openvino_orig_weight", "_compressed", ".weight")
"""After a module's name: of a model traced in 16 bits; in 32 bits, compressed to 16 or not."""
_FLOATS = {"f16": np.float16, "f32": np.float32}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A weight [out, in] as an IR stores it.

    codes: bytes in the order of the rows, of 4 bits two a byte with the first in the low half;
    scales: float16 or float32 [out, groups]; zeros: zero points, uint8 [out, groups], or None;
    offsets: where codes, scales and zeros begin in the .bin file (the last may be None).
    """

    codes: Bytes
    scales: npt.NDArray[np.floating]
    zeros: Bytes | None
    shape: tuple[int, int]
    bits: int
    signed: bool
    offsets: tuple[int, int, int | None]

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.shape[1] // int(self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all three constants as they are held in memory."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return int(self.codes.nbytes + self.scales.nbytes + zeros)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of shape, codes, scales and zero points."""
        total = hashlib.sha256(repr((self.shape, self.bits, self.signed, self.group)).encode())
        total.update(self.codes.data)
        total.update(np.ascontiguousarray(self.scales.astype(np.float32)).data)
        if self.zeros is not None:
            total.update(np.ascontiguousarray(self.zeros).data)
        return total.hexdigest()


def read_compressed(folder: Path) -> dict[str, CompressedTensor]:
    """The compressed weights of the IR in `folder`, by the module of the model that has them.

    Raises UserError for an IR that cannot be read, or whose compressed weights have a form that
    this does not know (three dimensions, groups across rows).
    """
    path = folder / IR_FILE
    try:
        layers = ElementTree.parse(path).getroot().find("layers")
        data = np.memmap(path.with_suffix(".bin"), dtype=np.uint8, mode="c")
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: this IR cannot be read ({error})") from None
    constants = {
        str(layer.get("name")): attributes.attrib
        for layer in (() if layers is None else layers)
        if layer.get("type") == "Const" and (attributes := layer.find("data")) is not None
    }
    return {
        module_of(name): _tensor(name, constants, data)
        for name, attributes in constants.items()
        if attributes["element_type"] in _CODES and f"{name}/scale" in constants
    }


def module_of(name: str) -> str:
    """The module's name in torch of a weight's name in the IR."""
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removeprefix("self.")


def digest_of(weights: Mapping[str, CompressedTensor]) -> str:
    """SHA-256, in hexadecimal, of all weights with their names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(f"{name} {weights[name].digest()}\n".encode())
    return total.hexdigest()


def unpack(codes: Bytes, count: int, *, signed: bool = False) -> npt.NDArray[np.int16]:
    """`count` codes of 4 bits, two a byte, as int16."""
    pairs = np.stack((codes & 15, codes >> 4), axis=-1).reshape(-1)[:count].astype(np.int16)
    return (pairs ^ 8) - 8 if signed else pairs


def pack(codes: npt.NDArray[np.integer]) -> Bytes:
    """Codes of 4 bits, two a byte: the inverse of `unpack`."""
    flat = (codes.reshape(-1) & 15).astype(np.uint8)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[::2] | (flat[1::2] << 4), dtype=np.uint8)


def dequantize(weight: CompressedTensor) -> npt.NDArray[np.float32]:
    """The weight's values, float32 [out, in]."""
    rows, size = weight.shape
    codes = _integers(weight).reshape(rows, -1, weight.group)
    zeros = 0 if weight.zeros is None else weight.zeros[:, :, None].astype(np.int16)
    values = (codes - zeros).astype(np.float32) * weight.scales[:, :, None].astype(np.float32)
    return np.asarray(values.reshape(rows, size), dtype=np.float32)


def replace_weights(
    folder: Path,
    changed: Mapping[str, tuple[npt.NDArray[np.integer], npt.NDArray[np.float32], Bytes | None]],
) -> None:
    """Write other codes [out, in], scales and zero points [out, groups] into the IR in `folder`.

    By module, for weights of 4 bits; shapes, types and groups stay. Raises UserError for a module
    that has no weight of 4 bits there.
    """
    weights = read_compressed(folder)
    with (folder / IR_FILE).with_suffix(".bin").open("r+b") as file:
        for name, (codes, scales, zeros) in changed.items():
            weight = weights.get(name)
            if weight is None or weight.bits != 4 or (zeros is None) != (weight.zeros is None):
                raise UserError(f"{folder}: {name} is not a 4-bit weight in a supported layout")
            at_codes, at_scales, at_zeros = weight.offsets
            parts = [
                (at_codes, pack(codes).tobytes()),
                (at_scales, scales.astype(weight.scales.dtype).tobytes()),
            ]
            if zeros is not None and at_zeros is not None:
                parts.append((at_zeros, pack(zeros).tobytes()))
            for offset, content in parts:
                file.seek(offset)
                file.write(content)


def _integers(weight: CompressedTensor) -> npt.NDArray[np.int16]:
    if weight.bits == 4:
        return unpack(weight.codes, weight.shape[0] * weight.shape[1], signed=weight.signed)
    kind = np.int8 if weight.signed else np.uint8
    return weight.codes.view(kind).astype(np.int16)


def _tensor(name: str, constants: Mapping[str, dict[str, str]], data: Bytes) -> CompressedTensor:
    attributes = constants[name]
    bits, signed = _CODES[attributes["element_type"]]
    shape = _shape(attributes)
    scale = constants[f"{name}/scale"]
    scale_shape = _shape(scale)
    known = len(shape) in (2, 3) and scale_shape == (*shape[:-1], 1)
    if not known or scale["element_type"] not in _FLOATS or (bits == 4 and shape[-1] % 2):
        raise UserError(
            f"{name}: only compressed linear layers can be read from an IR, not weights of shape"
            f" {shape} with scales {scale_shape} of type {scale['element_type']}; export a mixture"
            " of experts without --recover"
        )
    rows = shape[0]
    size, groups = int(np.prod(shape[1:])), int(np.prod(scale_shape[1:]))
    # Copied, as they may lie at an odd address, and are small.
    scales = _bytes(scale, data).copy().view(_FLOATS[scale["element_type"]]).reshape(rows, groups)
    zero = constants.get(f"{name}/zero_point")
    zeros = None
    if zero is not None:
        packed = _bytes(zero, data)
        values = unpack(packed, rows * groups) if zero["element_type"] == "u4" else packed
        zeros = values.astype(np.uint8).reshape(rows, groups)
    offsets = int(attributes["offset"]), int(scale["offset"])
    at_zero = None if zero is None else int(zero["offset"])
    codes = _bytes(attributes, data)
    return CompressedTensor(codes, scales, zeros, (rows, size), bits, signed, (*offsets, at_zero))


def _shape(attributes: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(int(part) for part in attributes["shape"].split(",") if part.strip())


def _bytes(attributes: Mapping[str, str], data: Bytes) -> Bytes:
    start, size = int(attributes["offset"]), int(attributes["size"])
    return data[start : start + size]
