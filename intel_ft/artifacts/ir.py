"""Read the weight types of an IR, and what NNCF recorded in it."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import IR_FILE

WEIGHT_BITS = {
    "f64": 64,
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "i8": 8,
    "u8": 8,
    "f8e4m3": 8,
    "f8e5m2": 8,
    "i4": 4,
    "u4": 4,
    "nf4": 4,
    "f4e2m1": 4,
}
_RECORD = (
    "mode",
    "group_size",
    "ratio",
    "all_layers",
    "awq",
    "scale_estimation",
    "gptq",
    "lora_correction",
    "backup_mode",
    "sensitivity_metric",
    "ignored_scope",
    "preset",
    "subset_size",
    "fast_bias_correction",
)
"""The parameters that NNCF writes into rt_info, except `advanced_parameters`."""


@dataclass(frozen=True)
class IRWeights:
    """The weights of an IR, read from its file.

    `elements`: number of values in constants, by element type, with zero points and scales but
    without indices and shapes (i32, i64). `bits`: of the most frequent type. `mode`, `group_size`
    (-1: one scale per output channel) and `ratio`: from rt_info, None where NNCF compressed
    nothing. `record`: NNCF's parameters in rt_info, as text.
    """

    elements: dict[str, int]
    bits: int
    mode: str | None
    group_size: int | None
    ratio: float | None
    record: dict[str, str]

    def share(self, *types: str) -> float:
        """Share of all elements whose type is one of `types`."""
        return sum(self.elements.get(name, 0) for name in types) / sum(self.elements.values())


def read_weights(folder: Path) -> IRWeights:
    """Read the IR in `folder`. Raises RuntimeError (OpenVINO's) if it cannot be read."""
    import openvino

    model = openvino.Core().read_model(folder / IR_FILE)
    elements: Counter[str] = Counter()
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":
            name = operation.get_element_type().get_type_name()
            if name in WEIGHT_BITS:
                elements[name] += math.prod(operation.get_output_shape(0))
    record = {
        key: text
        for part in ("quantization", "weight_compression")
        for key in _RECORD
        if (text := _value(model, part, key)) is not None
    }
    group_size, ratio = record.get("group_size"), record.get("ratio")
    return IRWeights(
        elements=dict(elements),
        bits=WEIGHT_BITS[elements.most_common(1)[0][0]],
        mode=record.get("mode", "int8 activations" if "preset" in record else None),
        group_size=None if group_size is None else int(group_size),
        ratio=None if ratio is None else float(ratio),
        record=record,
    )


def ir_megabytes(folder: Path) -> float:
    """Size of the IR's .xml and .bin, in units of 1e6 bytes."""
    names = ("openvino_model.xml", "openvino_model.bin")
    return sum((folder / name).stat().st_size for name in names) / 1e6


def _value(model: Any, part: str, key: str) -> str | None:
    path = ["nncf", part, key]
    return str(model.get_rt_info(path).value) if model.has_rt_info(path) else None
