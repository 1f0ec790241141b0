"""Compares the ways to an int4 model on the demo's task; prints the table of docs/export.md.

    python tools/compare_int4.py --output runs/int4 --model tiny-python-llama --seeds 3 --steps 80
    python tools/compare_int4.py --output runs/int4-small --model models/small --steps 200

For each seed, two runs that differ in the weights that they train on:

- bf16: LoRA on the base, merged; exported as each rung of int4, and recovered (--recover);
- int4: LoRA on the int4 base (model.base_dtype=int4), exported with --adapter.

Every candidate is compared with the merged bf16 run in torch, on the held-out examples. Runs and
exports are kept in OUTPUT and not repeated, so an interrupted comparison continues. One process at
a time; times are in export.json and mean nothing on a machine that others use.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.tables import Table

TRAIN = "docstring-to-python/train.jsonl"
HELDOUT = "docstring-to-python/heldout.jsonl"

RUNGS: dict[str, tuple[str, ...]] = {
    "int4": (),
    "int4-g64": ("group_size=64", "recipe=none"),
    "int4-g32": ("group_size=32", "recipe=none"),
    "int4-r80": ("group_size=64", "ratio=0.8", "recipe=none"),
    "int4-all": ("all_layers=true", "recipe=none"),
}
RECOVERED = {
    "int4-recovered": (),
    "int4-g32-recovered": ("group_size=32", "recipe=none"),
    "int4-all-recovered": ("all_layers=true", "recipe=none"),
}
ADAPTER = {
    "int4 + adapter": (),
    "int4-g64 + adapter": ("group_size: 64",),
    "int4-all + adapter": ("all_layers: true",),
}


def main() -> None:
    """Train, export and measure what is missing, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="tiny-python-llama")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--generate", type=int, default=50, help="answers that are checked")
    parser.add_argument("--heldout", default=HELDOUT)
    parser.add_argument("--recover-steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", help="measure these candidates alone")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, dict[str, Any]]] = []
    for seed in range(options.seeds):
        results.append(measure(options, seed))
        print(table(results).markdown(), flush=True)


def measure(options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """All candidates of one seed, by name: size and quality; `bf16` is the reference."""
    run = train(options, f"bf16-{seed}", seed, ())
    found: dict[str, dict[str, Any]] = {}
    for name, pairs in {**RUNGS, **RECOVERED}.items():
        if not wanted(options, name):
            continue
        extra = [part for pair in pairs for part in ("--set", pair)]
        if name in RECOVERED:
            extra += ["--recover", "--set", f"recover_steps={options.recover_steps}"]
        record = export(options, f"{name}-{seed}", [str(run)], extra)
        row = record["gate"]["table"][0]
        found.setdefault("bf16", record["gate"]["reference"])
        found[name] = row
    for name, settings in ADAPTER.items():
        if not wanted(options, name):
            continue
        key = name.replace(" + ", "-")
        quantization = f"model.quantization={{{', '.join(settings)}}}"
        trained = train(options, f"{key}-{seed}", seed, ("model.base_dtype=int4", quantization))
        extra = ["--adapter", "--reference", str(run)]
        record = export(options, f"{key}-ir-{seed}", [str(trained)], extra)
        (adapter,) = record["adapters"]
        file = options.output / f"{key}-ir-{seed}" / adapter["file"]
        size = record["megabytes"] + file.stat().st_size / 1e6
        found[name] = adapter["quality"] | {"megabytes": size}
        print(
            f"seed {seed}, training: bf16 {rate(run):,.0f} token/s, {name} {rate(trained):,.0f}",
            file=sys.stderr,
        )
    return found


def rate(run: Path) -> float:
    """The median of a run's tokens per second over its steps."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return statistics.median(line["tokens_per_s"] for line in lines if "tokens_per_s" in line)


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Whether this candidate is to be measured."""
    return not options.only or name in options.only


def train(options: argparse.Namespace, name: str, seed: int, overrides: tuple[str, ...]) -> Path:
    """The run with these overrides, trained unless it exists; as in `intel-ft demo`."""
    run = options.output / name
    if (run / "adapter").is_dir():
        return run
    config = options.output / "config.yaml"
    config.write_text("train: {}\n", encoding="utf-8")
    intel_ft(
        "train",
        *(str(config), f"model.name_or_path={options.model}", f"data.train={TRAIN}"),
        *(f"data.eval={options.heldout}", "data.template=tokenizer", f"train.seed={seed}"),
        *("train.global_batch_size=32", "train.learning_rate=0.003"),
        *(f"train.max_steps={options.steps}", f"train.eval_steps={options.steps}"),
        *("train.save_steps=1000000", "train.report_to=[]", f"output.directory={run}"),
        *overrides,
        *("--overwrite", "--json"),
    )
    return run


def export(
    options: argparse.Namespace, name: str, sources: list[str], extra: list[str]
) -> dict[str, Any]:
    """The export.json of this export, made unless it exists."""
    folder = options.output / name
    if not (folder / "export.json").is_file():
        intel_ft(
            *("export", *sources, "-o", str(folder), "--format", "int4"),
            *("--generate", str(options.generate), "--json"),
            *extra,
        )
    return read_json(folder / "export.json")


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
