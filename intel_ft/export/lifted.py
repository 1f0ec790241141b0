"""Export of families beyond the version of Transformers that Optimum-Intel states for them.

The stated limit is the last version that was tried there. For the families of
`models.exportable.LIFTED` the export is right with the locked version, and those of `OLDER` are
converted with another one. Each export proves it: the fp16 IR's logits must equal those of the
model in torch, with the installed version.
"""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json, resolve
from intel_ft.errors import IntelFTError
from intel_ft.export.trace import task_of
from intel_ft.models.exportable import is_compared, is_lifted

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
"""The relative error of the logits that is allowed, by the dtype in which torch computes.

In float32 it was at most 0.001 over six families; bf16 itself rounds by several per cent.
"""


@contextmanager
def lifted_limit(folder: Path) -> Iterator[None]:
    """Let Optimum-Intel export the model in `folder`, if its limit is one that is lifted."""
    model_type = model_type_of(folder)
    if not is_lifted(model_type):
        yield
        return
    config = _export_config(model_type, task_of(folder))
    stated = config.MAX_TRANSFORMERS_VERSION
    config.MAX_TRANSFORMERS_VERSION = None
    try:
        yield
    finally:
        config.MAX_TRANSFORMERS_VERSION = stated


def _export_config(model_type: str, task: str) -> Any:
    import optimum.exporters.openvino.model_configs  # noqa: F401 - registers them
    from optimum.exporters.tasks import TasksManager

    types = TasksManager._LIBRARY_TO_SUPPORTED_MODEL_TYPES["transformers"]
    return types[model_type]["openvino"][task].func


def check_lifted(folder: Path, ir: Path, dtype: str, *, trust_remote_code: bool) -> None:
    """Compare the logits of the fp16 `ir` with those of `folder` in torch, if that is needed.

    dtype: the one that torch computes in. Raises IntelFTError where they differ.
    """
    if not is_compared(model_type_of(folder)):
        return
    from intel_ft.export.logit_agreement import compare_logits, probe_logits, probe_sequences
    from intel_ft.runtimes.openvino_lm import OpenVINOLM
    from intel_ft.runtimes.torch_lm import load_torch

    model = load_torch(resolve(str(folder)), dtype=dtype, trust_remote_code=trust_remote_code)
    tokenizer = model.tokenizer
    sequences = probe_sequences(tokenizer)
    reference = probe_logits(model, sequences)
    del model
    gc.collect()
    exact = OpenVINOLM(ir, tokenizer, {"INFERENCE_PRECISION_HINT": "f32"})
    found = compare_logits(reference, probe_logits(exact, sequences))
    if not found.relative_error <= TOLERANCE[dtype]:
        raise IntelFTError(
            f"{folder}: the exported IR's logits are off by {found.relative_error:.3f} "
            f"({TOLERANCE[dtype]} allowed): Optimum-Intel does not support this model with the "
            "installed Transformers"
        )
    logger.info("the IR's logits equal torch's: relative error %.5f", found.relative_error)


def model_type_of(folder: Path) -> str:
    """The model_type in the folder's config.json."""
    return str(read_json(folder / "config.json").get("model_type"))
