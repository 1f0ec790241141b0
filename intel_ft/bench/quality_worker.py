"""One training of one contender and its validation loss, in a process of its own.

`python -m intel_ft.bench.quality_worker CONTENDER SEED STEPS THREADS` prints a measurement as JSON.
Data and settings are the demo's. The same plain code loads and evaluates every contender's adapter,
so the contenders differ in training only.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from intel_ft.assets import HELDOUT, MODEL, TRAIN, resolve
from intel_ft.backends import cpu
from intel_ft.bench import reference_trainer
from intel_ft.bench.quality import BASE, REFERENCE
from intel_ft.config import Config, build
from intel_ft.data.prepare import prepare
from intel_ft.models.load import load_tokenizer
from intel_ft.subprocess_json import result_stream


def settings(contender: str, seed: int, steps: int, threads: int | None, folder: Path) -> Config:
    """The demo's settings, except for the seed and the steps.

    There is no evaluation during training: the last adapter counts, not the best one.
    """
    return build(
        {
            "model": {
                "name_or_path": MODEL,
                "dtype": "bfloat16",
                **({"base_dtype": "int8"} if contender == "int8" else {}),
            },
            "data": {"train": TRAIN, "template": "tokenizer"},
            "method": {"r": 16, "alpha": 32},
            "train": {
                "max_steps": max(steps, 1),
                "global_batch_size": 32,
                "learning_rate": 3e-3,
                "seed": seed,
                "save_steps": 10**6,
                "report_to": [],
            },
            "backend": {"name": "cpu", "threads": threads or "auto"},
            "output": {"directory": folder / "run"},
        },
        "bench quality",
    )


def measure(contender: str, config: Config, folder: Path) -> dict[str, Any]:
    """Train, unless the contender is `base`, and evaluate on the validation set.

    Returns {heldout_loss, threads}, and {tokens, seconds, tokens_per_s} of the training's steps.
    """
    threads = cpu.select(config.backend, config.model).threads
    tokenizer = load_tokenizer(config.model)
    base = Path(resolve(MODEL))
    trained: dict[str, float] = {}
    adapter: Path | None = None
    if contender == REFERENCE:
        adapter = folder / "adapter"
        examples = prepare(config.data, resolve(TRAIN), tokenizer).examples
        tokens, seconds = reference_trainer.train(config, base, examples, adapter)
        trained = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
    elif contender != BASE:
        from intel_ft.training.run import train

        summary = train(config)
        adapter = Path(summary.adapter)
        trained = {"tokens": summary.tokens, "seconds": summary.seconds}
        trained["tokens_per_s"] = summary.tokens / summary.seconds
    validation = prepare(config.data, resolve(HELDOUT), tokenizer).examples
    return {
        "heldout_loss": reference_trainer.validation_loss(base, adapter, validation),
        "threads": threads,
        **trained,
    }


def main() -> None:
    """Measure the contender in argv. Only the result goes to stdout; libraries print on stderr."""
    contender, seed, steps, threads = sys.argv[1:]
    with result_stream() as stream, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(contender, int(seed), int(steps), int(threads) or None, folder)
        json.dump(measure(contender, config, folder), stream)


if __name__ == "__main__":
    main()
