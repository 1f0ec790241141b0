"""One data preparation by one contender, in a process of its own.

`python -m intel_ft.bench.prepare_worker CONTENDER FILE TOKENIZER` prints a measurement as JSON. The
clock starts once the libraries and the tokenizer are loaded. The product reads the file and ends
with all steps of an epoch planned and packed; `cached` does so through the cache of tokenized data,
once to fill it and once more. TRL reads it, writes prompt and completion as its
documentation asks for, and ends with the dataset that SFTTrainer would train on.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intel_ft.bench.prepare import CACHED
from intel_ft.bench.task import OWN_TRAINER
from intel_ft.config_sections import DataConfig
from intel_ft.subprocess_json import result_stream
from intel_ft.templates.template import ALPACA, ALPACA_WITH_INPUT

MAX_LENGTH = 4096  # tokens of an example and of a packed row; no example is longer
BATCH = 16  # examples per optimizer step
SETTINGS: dict[str, Any] = {"template": "alpaca", "max_length": MAX_LENGTH}


def ours(file: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Read, render, tokenize, mask, plan, and pack every step of an epoch for one rank."""
    return _planned(DataConfig(train=file, cache="off", **SETTINGS), tokenizer)


def cached(file: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, Any]:
    """The same through a cache in `folder`.

    `again_seconds` are those of a run that finds it, until its first step is planned.
    """
    data = DataConfig(train=file, cache=str(folder), **SETTINGS)
    first = _planned(data, tokenizer)
    again = _planned(data, tokenizer, steps=1)
    return {**first, "again_seconds": again["seconds"]}


def _planned(
    data: DataConfig, tokenizer: PreTrainedTokenizerFast, steps: int | None = None
) -> dict[str, Any]:
    import datasets  # noqa: F401  it is imported on first use, which should not be timed

    from intel_ft.batching.plan import Plan
    from intel_ft.data.training_set import tokenize

    start = time.perf_counter()
    tokenized = tokenize(data.of(data.sources[0]), tokenizer)
    examples = tokenized.examples
    prepared = time.perf_counter()
    plan = Plan(examples.lengths, examples.supervised_counts, BATCH, MAX_LENGTH, seed=0)
    steps = steps or plan.steps_per_epoch
    rows = sum(len(step.rows(rank=0, world_size=1)) for step in plan.steps(0, steps))
    end = time.perf_counter()
    assert rows >= steps
    return {
        "seconds": end - start,
        "plan_seconds": end - prepared,
        "rows": len(examples),
        "tokens": tokenized.report.tokens,
        "supervised_tokens": tokenized.report.supervised_tokens,
    }


def trl(
    contender: str, file: str, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, Any]:
    """`load_dataset`, one batched map to prompt and completion, SFTTrainer's own preparation.

    contender: `trl` prepares in one process per core, `trl-packed` as well and then packs,
    `trl-single` in one process, which is SFTConfig's default. Creating the model and the rest of
    the trainer is not timed.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    seconds = 0.0

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal seconds
            start = time.perf_counter()
            dataset = super()._prepare_dataset(*args, **kwargs)
            seconds += time.perf_counter() - start
            return dataset

    start = time.perf_counter()
    dataset = datasets.load_dataset(
        "json", data_files=file, split="train", cache_dir=str(folder / "cache")
    )
    rows = len(dataset)
    dataset = dataset.map(_prompts, batched=True, remove_columns=dataset.column_names)
    seconds += time.perf_counter() - start
    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        completion_only_loss=True,
        max_length=MAX_LENGTH,
        packing=contender == "trl-packed",
        dataset_num_proc=None if contender == "trl-single" else len(os.sched_getaffinity(0)),
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = Timed(
        model=_smallest_model(len(tokenizer)),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    arrays = trainer.train_dataset.with_format("arrow")
    labels = arrays[:]["labels"].combine_chunks().flatten().to_numpy()
    return {
        "seconds": seconds,
        "rows": rows,
        "tokens": len(labels),
        "supervised_tokens": int((labels != -100).sum()),
    }


def _prompts(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    """Alpaca's prompts, exactly as the template `alpaca` writes them."""
    prompts = [
        (ALPACA_WITH_INPUT if context else ALPACA)
        + f"\n\n### Instruction:\n{instruction}"
        + (f"\n\n### Input:\n{context}" if context else "")
        + "\n\n### Response:\n"
        for instruction, context in zip(batch["instruction"], batch["input"], strict=True)
    ]
    return {"prompt": prompts, "completion": batch["output"]}


def _smallest_model(vocabulary: int) -> LlamaForCausalLM:
    """SFTTrainer needs a model before it prepares data."""
    with torch.no_grad():
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
            )
        )


def main() -> None:
    """Measure the contender in argv. Only the result goes to stdout; libraries print on stderr."""
    contender, file, name = sys.argv[1:]
    with (
        result_stream() as stream,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        tokenizer = AutoTokenizer.from_pretrained(name)
        if contender == OWN_TRAINER:
            result = ours(file, tokenizer)
        elif contender == CACHED:
            result = cached(file, tokenizer, Path(folder))
        else:
            result = trl(contender, file, tokenizer, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB
        json.dump({**result, "peak_gib": peak}, stream)


if __name__ == "__main__":
    main()
