"""Compares the ways to an int4 model on the demo's task; prints the table of docs/export.md.

    python tools/compare_int4.py --output runs/int4 --model tiny-python-llama --steps 80
    python tools/compare_int4.py --output runs/int4-small --model models/small --steps 200

For each seed, two runs that differ in the weights that they train on:

- bf16: LoRA on the base, merged; exported as each rung of `--format auto`, and recovered;
- int4: LoRA on the int4 base (model.base_dtype=int4), exported with --adapter.

Every candidate is compared with the merged bf16 run in torch, on the held-out examples. What is
measured is kept in OUTPUT and not repeated, so an interrupted comparison continues, and several
processes can share the work: the first measures --only bf16 of a seed, then others --only INT4 ...
of it; --only without names prints what is there.
"""

import argparse
import json
import logging
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json, resolve
from intel_ft.export.context import DTYPE, ExportContext, ModelToExport, prepare_context
from intel_ft.export.export import require_packages
from intel_ft.export.gate import Gate, Limits, log_line
from intel_ft.export.ladder import Candidate, candidates
from intel_ft.export.measure import read_summary
from intel_ft.export.output import quiet
from intel_ft.export.try_candidate import try_candidate
from intel_ft.export.workspace import drop_stage
from intel_ft.files import write_json
from intel_ft.quantization import Settings
from intel_ft.tables import Table

TRAIN = "docstring-to-python/train.jsonl"
HELDOUT = "docstring-to-python/heldout.jsonl"
LIMIT = Limits(max_ppl_increase=0.003)

ADAPTER = {"int4 + adapter": (), "int4 + loftq adapter": ("method.init=loftq",)}
Measure = Callable[[], dict[str, Any]]


def main() -> None:
    """Train, export and measure what is missing, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="tiny-python-llama")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--generate", type=int, default=50, help="answers that are checked")
    parser.add_argument("--data", help="validation set; default: all of the demo's")
    parser.add_argument("--set", nargs="*", default=[], help="settings of --recover, KEY=VALUE")
    parser.add_argument("--only", nargs="*", help="measure these candidates alone, or none")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    results = [measure(options, seed) for seed in options.seeds]
    print(table(results).markdown())
    for seed, found in zip(options.seeds, results, strict=True):
        plain, recovered = (chosen(found, recover=recover) for recover in (False, True))
        print(f"seed {seed}, auto at 0.3 %: {plain}; with --recover: {recovered}")


def measure(options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """All candidates of one seed, by name: size and quality; `bf16` is the reference."""
    found: dict[str, dict[str, Any]] = {}
    run = train(options, f"bf16-{seed}", seed, ())
    for name, measured in [*merged(options, run), *separate(options, run, seed)]:
        path = options.output / f"{file_name(name)}-{seed}.json"
        if not path.is_file() and (options.only is None or name in options.only):
            write_json(path, measured())
        if row := read_json(path):
            found[name] = row
    return found


def merged(options: argparse.Namespace, run: Path) -> Iterator[tuple[str, Measure]]:
    """The merged run, the rungs of `--format auto --recover`, and int4 in all layers."""
    recovery = dict(pair.split("=", 1) for pair in options.set)
    rungs = candidates("auto", Settings.model_validate(recovery), recover=True)
    rungs.append(Candidate("int4-all", "int4", Settings(recipe="none", all_layers=True)))

    @cache
    def context() -> ExportContext:
        require_packages()
        work = run.with_name(f"{run.name}-exports")
        gate = Gate(generate=options.generate, data=options.data)
        source = ModelToExport(resolve(str(run)), None, trust_remote_code=False, allow_pickle=False)
        return prepare_context(source, work, gate, None, Settings(), recover=True)

    def reference() -> dict[str, Any]:
        with quiet():
            folder = context().reference
        return read_summary(folder) | read_json(folder / DTYPE)

    def candidate(rung: Candidate) -> dict[str, Any]:
        with quiet():
            result = try_candidate(context(), rung)
            drop_stage(context().folder(rung.name))
        logging.info("%s", log_line(result.row, LIMIT))
        return result.row.record(LIMIT) | {"recovery": result.recovery}

    yield "bf16", reference
    for rung in rungs:
        yield rung.name, partial(candidate, rung)


def separate(options: argparse.Namespace, run: Path, seed: int) -> Iterator[tuple[str, Measure]]:
    """The compressed base with an adapter that was trained on it."""

    def measured(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
        key = file_name(name)
        trained = train(options, f"{key}-{seed}", seed, ("model.base_dtype=int4", *overrides))
        folder = options.output / f"{key}-ir-{seed}"
        intel_ft(
            *("export", str(trained), "-o", str(folder), "--format", "int4", "--adapter"),
            *("--reference", str(run), "--generate", str(options.generate), "--json"),
            *(("--data", options.data) if options.data else ()),
        )
        record = read_json(folder / "export.json")
        (one,) = record["adapters"]
        size = record["megabytes"] + (folder / one["file"]).stat().st_size / 1e6
        logging.info("training: bf16 %.0f token/s, %s %.0f", rate(run), name, rate(trained))
        return dict(one["quality"]) | {"megabytes": size}

    for name, overrides in ADAPTER.items():
        yield name, partial(measured, name, overrides)


def file_name(name: str) -> str:
    """A candidate's name in those of files."""
    return name.replace(" + ", "-").replace(" ", "-")


def chosen(found: dict[str, dict[str, Any]], *, recover: bool) -> str:
    """The rung that `--format auto` selects at LIMIT, of those that were measured."""
    for rung in candidates("auto", Settings(), recover=recover):
        row = found.get(rung.name)
        if row is not None and row["passed"]:
            return f"{rung.name}, {row['megabytes']:.2f} MB"
    return "none of these"


def rate(run: Path) -> float:
    """The median of a run's tokens per second over its steps."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [float(line["tokens_per_s"]) for line in lines if "tokens_per_s" in line]
    return statistics.median(rates)


def train(options: argparse.Namespace, name: str, seed: int, overrides: tuple[str, ...]) -> Path:
    """The run with these overrides, trained unless it exists; as in `intel-ft demo`."""
    run: Path = options.output / name
    if (run / "adapter").is_dir():
        return run
    config = options.output / "config.yaml"
    config.write_text("train: {}\n", encoding="utf-8")
    intel_ft(
        "train",
        *(str(config), f"model.name_or_path={options.model}", f"data.train={TRAIN}"),
        *(f"data.eval={HELDOUT}", "data.template=tokenizer", f"train.seed={seed}"),
        *("train.global_batch_size=32", "train.learning_rate=0.003"),
        *(f"train.max_steps={options.steps}", f"train.eval_steps={options.steps}"),
        *("train.save_steps=1000000", "train.report_to=[]", f"output.directory={run}"),
        *overrides,
        *("--overwrite", "--json"),
    )
    return run


def intel_ft(*arguments: str) -> dict[str, Any]:
    """What `intel-ft arguments` prints as JSON; its log goes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "intel_ft", *arguments], stdout=subprocess.PIPE, check=True
    )
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def table(results: list[dict[str, dict[str, Any]]]) -> Table:
    """Means over seeds, with the lowest and highest increase of perplexity."""
    rows = []
    for name in dict.fromkeys(name for one in results for name in one):
        found = [one[name] for one in results if name in one]
        increases = [100 * row["ppl_increase"] for row in found if "ppl_increase" in row]
        rows.append(
            (
                name,
                f"{mean(found, 'megabytes'):.2f}",
                f"{math.exp(statistics.mean(math.log(row['perplexity']) for row in found)):.4f}",
                f"{statistics.mean(increases):+.2f} %" if increases else "",
                f"{min(increases):+.2f} to {max(increases):+.2f} %" if increases else "",
                f"{mean(found, 'kl'):.5f}" if increases else "",
                f"{mean(found, 'agreement'):.4f}" if increases else "",
                f"{mean(found, 'parses'):.1%}",
            )
        )
    heads = ("candidate", "MB", "perplexity", "increase", "range", "KL", "top-1", "parses")
    return Table(heads, rows, (f"{len(results)} seeds, means.",))


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """The mean of one figure over seeds; NaN where it was not measured."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.mean(values) if values else math.nan


if __name__ == "__main__":
    main()
