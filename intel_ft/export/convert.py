"""Trace a model folder into an fp16 IR and convert its tokenizer."""

import os
import shutil
import sys
from pathlib import Path

from intel_ft.artifacts.model_folder import GENERATION, write_base_id
from intel_ft.artifacts.resolve import Artifact, is_reward_model
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.export.classifier import ends_by_mask, require_one_score
from intel_ft.export.half import half_precision
from intel_ft.export.lifted import lifted_limit, model_type_of
from intel_ft.export.trace import task_of, trace
from intel_ft.models.exportable import older_packages
from intel_ft.runtimes.language_model import base_config
from intel_ft.subprocess_json import run_command


def safe_folder(model: Artifact, trust_remote_code: bool, allow_pickle: bool) -> Path:
    """The local folder of `model`, after checking its files and weights.

    Raises UserError where the loader for training would refuse the folder, and where a weight is
    not finite or beyond the fp16 range.
    """
    from intel_ft.models.load import check_folder, model_folder
    from intel_ft.models.weight_files import check_finite

    config = base_config(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    folder = model_folder(config)
    scores = is_reward_model(folder)
    check_folder(folder, config, scores=scores)
    if scores:
        require_one_score(folder)
    check_finite(folder, fp16=True)
    return folder


def convert(folder: Path, output: Path, base_id: str, trust_remote_code: bool) -> None:
    """Write an IR with fp16 weights of the model in `folder` to `output`, with its tokenizer."""
    older = older_packages(model_type_of(folder))
    try:
        with (
            lifted_limit(folder),
            half_precision(folder, output) as half,
            ends_by_mask(half, output) as source,
        ):
            if older is None:
                trace(source, output, trust_remote_code=trust_remote_code)
            else:
                _trace_with(older, source, output, trust_remote_code)
    except ValueError as error:
        raise UserError(f"{folder}: Optimum-Intel cannot export this model: {error}") from error
    generation = folder / GENERATION
    if generation.is_file() and not (output / GENERATION).is_file():
        # Optimum-Intel skips one that Transformers refuses to save; it holds the stop tokens.
        shutil.copyfile(generation, output / GENERATION)
    _add_tokenizer(folder, output, trust_remote_code)
    write_base_id(output, base_id)


def _trace_with(packages: Path, source: Path, output: Path, trust_remote_code: bool) -> None:
    """Trace in a process that imports from the folder `packages` first."""
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    module = ["-m", "intel_ft.export.trace", str(source), str(output), str(trust_remote_code)]
    run_command(
        f"export with {packages.name}",
        [sys.executable, *module],
        os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def _add_tokenizer(folder: Path, output: Path, trust_remote_code: bool) -> None:
    """Write the Hugging Face tokenizer, the tokenizer IR and the detokenizer IR to `output`."""
    from optimum.exporters.openvino.convert import export_tokenizer

    from intel_ft.models.tokenizer import copy_tokenizer, load_tokenizer

    tokenizer = load_tokenizer(
        ModelConfig(name_or_path=str(folder), trust_remote_code=trust_remote_code)
    )
    copy_tokenizer(tokenizer, output)
    # It changes the tokenizer's padding side, and reports no failures.
    export_tokenizer(tokenizer, output, task=task_of(folder))
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        if not (output / name).is_file():
            raise UserError(
                f"{folder}: openvino-tokenizers cannot convert this {type(tokenizer).__name__} "
                f"({name} was not written), and OpenVINO's runtimes need it"
            )
