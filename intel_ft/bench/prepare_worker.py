"""One preparation by one side in a process of its own: `python -m intel_ft.bench.prepare_worker
SIDE FILE TOKENIZER`, a JSON measurement out on stdout; started by insight.bench_prepare.

The clock starts when the libraries and the tokenizer are loaded. Ours reads the file and ends with
all steps of an epoch planned and packed; TRL reads it, writes prompt and completion as its
documentation asks for, and ends with the dataset that SFTTrainer would train on.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intel_ft.config import DataConfig
from intel_ft.data.templates import ALPACA, ALPACA_WITH_INPUT
from intel_ft.subprocess_json import answer

MAX_LENGTH = 4096  # tokens: of an example and of a packed row, more than any example has
BATCH = 16  # examples an optimizer step


def ours(file: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Read, render, tokenize, mask, plan, and pack every step of an epoch for one rank."""
    import datasets  # noqa: F401  which preparing imports when it first reads: not timed here

    from intel_ft.batching.plan import Plan
    from intel_ft.data.prepare import prepare

    start = time.perf_counter()
    data = DataConfig(train=file, template="alpaca", max_length=MAX_LENGTH)
    examples = prepare(data, file, tokenizer).examples
    prepared = time.perf_counter()
    plan = Plan(examples.lengths, examples.supervised_counts, BATCH, MAX_LENGTH, seed=0)
    rows = [step.rows(rank=0, world_size=1) for step in plan.steps(0, plan.steps_per_epoch)]
    end = time.perf_counter()
    assert sum(map(len, rows)) >= plan.steps_per_epoch
    return {
        "seconds": end - start,
        "plan_seconds": end - prepared,
        "rows": len(examples),
        "tokens": len(examples.tokens),
        "supervised_tokens": int(examples.supervised.sum()),
    }


def trl(side: str, file: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, Any]:
    """`load_dataset`, one batched map to prompt and completion, SFTTrainer's own preparation.

    side: `trl` prepares in as many processes as there are cores, `trl-packed` likewise and packs,
    `trl-single` in one process, which is SFTConfig's default. Making the model and the rest of
    the trainer is not timed.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    spent = 0.0

    class Timed(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            dataset = super()._prepare_dataset(*args, **kwargs)
            spent += time.perf_counter() - start
            return dataset

    start = time.perf_counter()
    dataset = datasets.load_dataset(
        "json", data_files=file, split="train", cache_dir=str(folder / "cache")
    )
    rows = len(dataset)
    dataset = dataset.map(_prompts, batched=True, remove_columns=dataset.column_names)
    spent += time.perf_counter() - start
    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        completion_only_loss=True,
        max_length=MAX_LENGTH,
        packing=side == "trl-packed",
        dataset_num_proc=None if side == "trl-single" else len(os.sched_getaffinity(0)),
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
        "seconds": spent,
        "rows": rows,
        "tokens": len(labels),
        "supervised_tokens": int((labels != -100).sum()),
    }


def _prompts(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    """Alpaca's wording, as our own template `alpaca` writes it."""
    prompts = [
        (ALPACA_WITH_INPUT if given else ALPACA)
        + f"\n\n### Instruction:\n{asked}"
        + (f"\n\n### Input:\n{given}" if given else "")
        + "\n\n### Response:\n"
        for asked, given in zip(batch["instruction"], batch["input"], strict=True)
    ]
    return {"prompt": prompts, "completion": batch["output"]}


def _smallest_model(vocabulary: int) -> LlamaForCausalLM:
    """SFTTrainer wants one before it looks at data."""
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
    """Measure the side in argv; libraries that print get stderr, stdout is the measurement's."""
    side, file, name = sys.argv[1:]
    with (
        answer() as stream,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        tokenizer = AutoTokenizer.from_pretrained(name)
        if side == "ours":
            result = ours(file, tokenizer)
        else:
            result = trl(side, file, tokenizer, Path(folder))
        json.dump(result, stream)


if __name__ == "__main__":
    main()
