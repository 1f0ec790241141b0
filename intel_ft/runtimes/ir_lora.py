"""Add a LoRA adapter to an IR as OpenVINO GenAI does at run time, so that logits can be read."""

import re
from pathlib import Path
from typing import Any

from intel_ft.errors import IntelFTError

_LINEAR = re.compile(r"__module\.(.+?)/[^/]*/MatMul")
_PREFIX = "base_model.model."


def add_adapter(model: Any, file: Path) -> None:
    """Add x A^T B^T to the output of each linear layer in `model` (openvino.Model), in place.

    file: a LoRA file with the scaling folded into B. Raises IntelFTError where the model has no
    linear layer of that name.
    """
    from openvino import opset13 as ops
    from safetensors.torch import load_file

    tensors = load_file(file)
    layers = {
        match[1]: node
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and (match := _LINEAR.match(node.get_friendly_name()))
    }
    for key in sorted(tensors):
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        node = layers.get(name)
        if node is None:
            raise IntelFTError(f"{file}: the IR has no linear layer {name} for this adapter")
        a, b = (
            ops.constant(tensors[key.replace("lora_A", part)].float().numpy())
            for part in ("lora_A", "lora_B")
        )
        consumers = list(node.output(0).get_target_inputs())
        low = ops.matmul(node.input_value(0), a, False, True)
        added = ops.add(node, ops.matmul(low, b, False, True))
        for consumer in consumers:
            consumer.replace_source_output(added.output(0))
