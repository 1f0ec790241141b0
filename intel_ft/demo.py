"""The demo: train, evaluate, merge, export and generate with the shipped model and data."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from intel_ft.assets import HELDOUT, MODEL, TRAIN
from intel_ft.config import build
from intel_ft.files import require_absent_or_empty

logger = logging.getLogger(__name__)

PROMPT = (
    "Write the Python method `Queue.peek(self)`.\n\n"
    "Return the first item of the queue without removing it."
)


@dataclass(frozen=True)
class DemoReport:
    """Losses are nats per supervised token of the validation set; `seconds` is the total time."""

    heldout_loss_base: float
    heldout_loss_tuned: float
    perplexity_bf16: float
    perplexity_int8: float
    tokens_per_s: float | None
    mfu: float | None
    utilization: float | None
    seconds: float
    prompt: str
    generated: str


def demo(output: Path, *, max_steps: int = 80) -> DemoReport:
    """Go from a dataset to an OpenVINO model; writes run/, merged/ and openvino/ to `output`.

    max_steps: training steps. Raises UserError if `output` is not empty.
    """
    from intel_ft.optional_packages import import_peft

    import_peft()
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.assets import resolve as asset
    from intel_ft.data.prepare import prepare
    from intel_ft.export.export import export
    from intel_ft.export.merge import merge
    from intel_ft.inference.evaluate import EvalResult, evaluate
    from intel_ft.runtimes.language_model import Sampling
    from intel_ft.runtimes.open_model import open_model
    from intel_ft.templates.formats import Message
    from intel_ft.templates.prompt import prompt_tokens
    from intel_ft.training.run import train

    start = time.monotonic()
    require_absent_or_empty(output, "choose another --output, or remove it first")
    run, merged, ir = output / "run", output / "merged", output / "openvino"
    config = build(
        {
            "model": {"name_or_path": MODEL},
            "data": {"train": TRAIN, "eval": HELDOUT, "template": "tokenizer"},
            "method": {"r": 16, "alpha": 32},
            "train": {
                "max_steps": max_steps,
                "global_batch_size": 32,
                "learning_rate": 3e-3,
            },
            "output": {"directory": run},
        },
        "demo",
    )

    def evaluate_on_validation_set(source: str) -> EvalResult:
        model = open_model(resolve(source))
        return evaluate(model, prepare(config.data, asset(HELDOUT), model.tokenizer))

    logger.info("1/6 evaluating the base model on the validation set")
    base = evaluate_on_validation_set(asset(MODEL))
    logger.info("2/6 training a LoRA adapter")
    summary = train(config)
    logger.info("3/6 evaluating the adapter")
    tuned = evaluate_on_validation_set(str(run))
    logger.info("4/6 merging the adapter into the base model, evaluating the result")
    merge(str(run), merged)
    bf16 = evaluate_on_validation_set(str(merged))
    logger.info("5/6 exporting to OpenVINO int8, evaluating the result")
    export(str(merged), ir, "int8")
    int8 = evaluate_on_validation_set(str(ir))
    logger.info("6/6 generating with the OpenVINO model")
    model = open_model(resolve(str(ir)))
    tokens = prompt_tokens(model.tokenizer, "tokenizer", (Message("user", PROMPT),))
    answer = model.generate(tokens, Sampling(max_new_tokens=120))
    return DemoReport(
        heldout_loss_base=base.loss,
        heldout_loss_tuned=tuned.loss,
        perplexity_bf16=bf16.perplexity,
        perplexity_int8=int8.perplexity,
        tokens_per_s=summary.tokens_per_s,
        mfu=summary.mfu,
        utilization=summary.utilization,
        seconds=time.monotonic() - start,
        prompt=PROMPT,
        generated=answer.text,
    )
