"""One training of one side and its held-out loss, in a process of its own: `python -m
intel_ft.bench.quality_worker SIDE SEED STEPS THREADS`, a JSON measurement out on stdout; started by
insight.bench_quality.

The data and settings are the demo's. Every side's adapter is loaded and measured by the same plain
code, so only training differs.
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
from intel_ft.subprocess_json import answer


def settings(side: str, seed: int, steps: int, threads: int | None, folder: Path) -> Config:
    """The demo's settings but for the seed and the steps. No evaluation while it trains: the last
    adapter counts, not the best one.
    """
    return build(
        {
            "model": {
                "name_or_path": MODEL,
                "dtype": "bfloat16",
                **({"base_dtype": "int8"} if side == "int8" else {}),
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


def measure(side: str, config: Config, folder: Path) -> dict[str, Any]:
    """Train (`base` does not) and measure: {heldout_loss, threads}, and {tokens, seconds,
    tokens_per_s} of the training's steps.
    """
    threads = cpu.select(config.backend, config.model).threads
    tokenizer = load_tokenizer(config.model)
    base = Path(resolve(MODEL))
    trained: dict[str, float] = {}
    adapter: Path | None = None
    if side == REFERENCE:
        adapter = folder / "adapter"
        examples = prepare(config.data, resolve(TRAIN), tokenizer).examples
        tokens, seconds = reference_trainer.train(config, base, examples, adapter)
        trained = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
    elif side != BASE:
        from intel_ft.training.run import train

        summary = train(config)
        adapter = Path(summary.adapter)
        trained = {"tokens": summary.tokens, "seconds": summary.seconds}
        trained["tokens_per_s"] = summary.tokens / summary.seconds
    heldout = prepare(config.data, resolve(HELDOUT), tokenizer).examples
    return {
        "heldout_loss": reference_trainer.heldout_loss(base, adapter, heldout),
        "threads": threads,
        **trained,
    }


def main() -> None:
    """Measure the side in argv; libraries that print get stderr, stdout is the measurement's."""
    side, seed, steps, threads = sys.argv[1:]
    with answer() as stream, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(side, int(seed), int(steps), int(threads) or None, folder)
        json.dump(measure(side, config, folder), stream)


if __name__ == "__main__":
    main()
