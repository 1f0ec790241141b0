"""`bench prepare`: speed of preparing data (token ids, masks, batch plan), compared with TRL."""

import json
import os
import statistics
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from intel_ft import subprocess_json
from intel_ft.assets import resolve
from intel_ft.bench.task import OWN_TRAINER
from intel_ft.bench.turns import run_in_turns
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.versions import installed

CACHED = "cached"
"""The product itself, through the cache of tokenized data."""
PEERS = (CACHED, "trl", "trl-packed", "trl-single")
TOKENIZER = "tiny-python-llama"
WORDS = "docstring-to-python/train.jsonl"


def bench_prepare(
    rows: int, repeat: int, peers: list[str], tokenizer: str = TOKENIZER
) -> dict[str, Any]:
    """Prepare `rows` alpaca-like rows with the product and the peers in turns, `repeat` times each.

    Every run is a fresh process without a cache. Returns {rows, tokenizer, ours, peers, machine}.
    Each contender has the medians of seconds, rows_per_s and tokens_per_s, and its runs; a peer
    also has `ratio`, its seconds over ours, or {"error": reason} if it failed. peers: see PEERS;
    `cached` has again_seconds, too, those of a second run, and all have peak_gib, the most memory
    that a process had.
    tokenizer: a model folder or the name of a shipped asset.

    Raises UserError and EnvironmentProblem before anything runs, IntelFTError if the product's own
    preparation fails.
    """
    peers = list(dict.fromkeys(peers))
    for peer in peers:
        if peer not in PEERS:
            raise UserError(f"unknown peer {peer!r}: choose one of {', '.join(PEERS)}")
        if peer != CACHED and installed("trl") is None:
            raise EnvironmentProblem(f"peer {peer}: trl is not installed; run `make peers`")
    if rows < 1 or repeat < 1:
        raise UserError(f"{rows} rows, {repeat} runs: at least one of each is needed")
    folder = resolve(tokenizer)
    if not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer}: not a folder with a tokenizer.json")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        write_rows(file, rows)
        runs, failed = run_in_turns(
            peers,
            repeat,
            lambda contender: _run(contender, file, folder),
            lambda run: f"{run['seconds']:.2f} s",
        )
    from intel_ft.bench import machine  # imported after the runs: it loads torch

    ours = _summary(runs[OWN_TRAINER])
    summaries: dict[str, dict[str, Any]] = {}
    for peer in peers:
        if peer in failed:
            summaries[peer] = {"error": failed[peer]}
        else:
            summary = _summary(runs[peer])
            summaries[peer] = {**summary, "ratio": summary["seconds"] / ours["seconds"]}
    return {
        "rows": rows,
        "tokenizer": tokenizer,
        OWN_TRAINER: ours,
        "peers": summaries,
        "machine": machine.describe(len(os.sched_getaffinity(0))),
    }


def write_rows(file: Path, rows: int, seed: int = 0) -> None:
    """Write `rows` rows of instruction, input (in 40 % of them) and output as JSON lines.

    Lengths in characters are lognormal with alpaca's medians: 55, 55 and 180. The texts are
    excerpts of the shipped docstrings and code, so a tokenizer has as much work as with real text.
    """
    with Path(resolve(WORDS)).open(encoding="utf-8") as stream:
        texts = [json.loads(line) for line in stream]
    words = " ".join(f"{text['instruction']} {text['output']}" for text in texts)
    random = Random(seed)

    def excerpt(median: float, sigma: float, longest: int) -> str:
        length = min(max(round(median * random.lognormvariate(0, sigma)), 5), longest)
        start = words.index(" ", random.randrange(len(words) - 2 * longest))
        return words[start : start + length].strip() or "x"

    with file.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            row = {
                "instruction": excerpt(55, 0.45, 400),
                "input": excerpt(55, 0.8, 700) if random.random() < 0.4 else "",
                "output": excerpt(180, 0.9, 2500),
            }
            stream.write(json.dumps(row) + "\n")


def _run(contender: str, file: Path, tokenizer: str) -> dict[str, Any]:
    """One run in a fresh process, with an empty cache folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        arguments = [contender, str(file), tokenizer]
        return subprocess_json.run_module(
            f"bench {contender}", "intel_ft.bench.prepare_worker", arguments, environment
        )


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = statistics.median(run["seconds"] for run in runs)
    return {
        "seconds": seconds,
        "rows_per_s": runs[0]["rows"] / seconds,
        "tokens_per_s": runs[0]["tokens"] / seconds,
        "tokens": runs[0]["tokens"],
        "supervised_tokens": runs[0]["supervised_tokens"],
        "peak_gib": max(run.get("peak_gib", 0.0) for run in runs),
        **_again(runs),
        "runs": runs,
    }


def _again(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The seconds of a run that finds what one before it made, where that was measured."""
    seconds = [run["again_seconds"] for run in runs if "again_seconds" in run]
    return {"again_seconds": statistics.median(seconds)} if seconds else {}
