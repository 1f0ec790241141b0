"""Trace a reward model, which is a sequence classifier, to an IR, and correct the IR.

Transformers reads the score at the last token that is not `config.pad_token_id`, and refuses a
batch where there is none, as in most published bases. The IR reads it at the last token that the
attention mask has, whatever the padding is.
"""

import gc
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from intel_ft.artifacts.resolve import IR_FILE, is_reward_model, read_json, resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.logit_agreement import probe_sequences
from intel_ft.files import write_json

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
"""Largest error of a score, relative to the typical size of a score, by torch's dtype."""
_CONFIG = "config.json"


@contextmanager
def ends_by_mask(folder: Path, ir: Path) -> Iterator[Path]:
    """Yield the folder to trace to `ir` in place of `folder`, and correct the traced IR.

    For a language model, yields `folder` itself. Raises IntelFTError for a traced classifier that
    does not find the end of a text as Transformers' classifiers do.
    """
    if not is_reward_model(folder):
        yield folder
        return
    config = read_json(folder / _CONFIG)
    with tempfile.TemporaryDirectory(dir=ir.parent, prefix=".classifier-") as aside:
        copy = Path(aside)
        for path in folder.iterdir():
            if path.name != _CONFIG:
                (copy / path.name).symlink_to(path.resolve())
        # Traced with token 0 as padding, the IR compares ids with 0, and then the mask instead.
        write_json(copy / _CONFIG, config | {"pad_token_id": 0})
        yield copy
        _correct(ir, copy)
    written = json.loads((ir / _CONFIG).read_text(encoding="utf-8"))
    write_json(ir / _CONFIG, written | {"pad_token_id": config.get("pad_token_id")})


def _correct(ir: Path, aside: Path) -> None:
    """Correct the traced IR in the folder `ir`, by way of the folder `aside`."""
    import openvino

    model = openvino.Core().read_model(ir / IR_FILE)
    _compare_the_mask(model)
    _sum_the_score(model)
    openvino.save_model(model, aside / IR_FILE, compress_to_fp16=False)
    del model  # which maps the file that is replaced
    gc.collect()
    for suffix in (".bin", ".xml"):
        name = Path(IR_FILE).with_suffix(suffix).name
        (aside / name).replace(ir / name)


def _compare_the_mask(model: Any) -> None:
    """Let the IR compare its attention mask with 0 instead of its token ids."""
    uses = model.input("input_ids").get_target_inputs()
    compared = [one for one in uses if one.get_node().get_type_name() == "NotEqual"]
    if len(compared) != 1:
        raise IntelFTError(
            "the traced classifier does not find the end of a text as Transformers' classifiers "
            f"do: it compares its token ids {len(compared)} times, not once: this model cannot be "
            "exported as a reward model"
        )
    compared[0].replace_source_output(model.input("attention_mask"))


def _sum_the_score(model: Any) -> None:
    """Replace the head's MatMul, whose result is rounded to bf16, by a product and a sum.

    In bf16, scores around 8 have steps of 1/32. The CPU plugin computes in float32 what follows the
    last MatMul, and quantization leaves the head's weight as it is.
    """
    from openvino import opset13 as operations

    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    product = operations.multiply(head.input_value(0), head.input_value(1))
    total = operations.reduce_sum(product, operations.constant([-1]), keep_dims=True)
    for use in head.output(0).get_target_inputs():
        use.replace_source_output(total.output(0))


def require_one_score(folder: Path) -> None:
    """Raise UserError for a classifier of several labels."""
    from transformers import PretrainedConfig

    labels = PretrainedConfig.from_dict(read_json(folder / _CONFIG)).num_labels
    if labels != 1:
        raise UserError(
            f"{folder}: this classifier has {labels} labels, but a reward model has one: give a"
            " classifier with one label"
        )


def check_scores(folder: Path, ir: Path, dtype: str, *, trust_remote_code: bool) -> None:
    """Compare the scores of the fp16 `ir` with those of `folder` in torch, on the probe texts.

    dtype: the one that torch computes in. Raises IntelFTError where they differ.
    """
    from intel_ft.models.targets import output_layer
    from intel_ft.runtimes.openvino_reward import OpenVINOReward
    from intel_ft.runtimes.torch_reward import load_reward

    model = load_reward(resolve(str(folder)), dtype=dtype, trust_remote_code=trust_remote_code)
    texts = probe_sequences(model.tokenizer)
    ends = np.array([model.hidden_states(tokens)[-1] for tokens in texts])
    head = output_layer(model.model).weight.detach().float().numpy()[0]
    # A score is a dot product, which may be close to zero by chance. Its error is compared with the
    # size that the dot product of two such vectors has in random directions.
    usual = float(np.linalg.norm(ends, axis=1).mean() * np.linalg.norm(head) / len(head) ** 0.5)
    tokenizer = model.tokenizer
    del model
    gc.collect()
    exact = OpenVINOReward(ir, tokenizer, {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.array([exact.score(tokens) for tokens in texts])
    error = float(np.abs(found - ends @ head).max()) / usual
    if not error <= TOLERANCE[dtype]:
        raise IntelFTError(
            f"{folder}: the exported IR's scores differ from torch's by {error:.3f} of their "
            f"typical size ({TOLERANCE[dtype]} allowed): Optimum-Intel does not support this model "
            "with the installed Transformers"
        )
    logger.info("the IR's scores equal torch's: relative error %.5f", error)
