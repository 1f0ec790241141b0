"""Trace a model into an IR; as a program, with the packages that PYTHONPATH names first."""

import sys
from pathlib import Path

from intel_ft.artifacts.resolve import is_reward_model
from intel_ft.export.paged_out import paged_out

TASK = "text-generation-with-past"
CLASSIFICATION = "text-classification"


def task_of(folder: Path) -> str:
    """Optimum-Intel's name for what the model in `folder` does."""
    return CLASSIFICATION if is_reward_model(folder) else TASK


def trace(source: Path, output: Path, *, trust_remote_code: bool) -> None:
    """Write an IR with fp16 weights of the model in `source` to `output`.

    `OVConfig(dtype="fp16")` converts bf16 weights while they are loaded, and large models are
    converted on disk before (export.half); without it Optimum-Intel (2.2) writes bf16 constants.
    It has no effect on classifiers, which are loaded in fp16 instead.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    task = task_of(source)
    with paged_out(source):
        main_export(
            str(source),
            output,
            task=task,
            ov_config=OVConfig(dtype="fp16"),
            library_name="transformers",
            trust_remote_code=trust_remote_code,
            model_loading_kwargs={"torch_dtype": "float16"} if task == CLASSIFICATION else None,
        )


if __name__ == "__main__":
    trace(Path(sys.argv[1]), Path(sys.argv[2]), trust_remote_code=sys.argv[3] == "True")
