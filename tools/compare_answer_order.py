"""Measures what `train.keep_answers_together` does to quality; prints the table of docs/log.md.

    python tools/compare_answer_order.py --output runs/answer-order --steps 200

Makes two data sets with several answers per prompt from the shipped functions, and a validation set
of each from the shipped validation set, which is from other modules:

- `forms`: a docstring as the prompt, and four answers that differ little: the function as written,
  with one line of docstring, with none, and without comments (`ast.unparse`);
- `methods`: a class as the prompt, and up to eight of its methods as answers, which differ a lot.

Each training is a separate `intel-ft train` of the shipped model with the key on or off; the loss
and the share of answers that parse come from `intel-ft eval`. Results are appended to
OUTPUT/results.jsonl and not measured again, so an interrupted comparison continues.
"""

import argparse
import ast
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from intel_ft.assets import HELDOUT, MODEL, TRAIN, resolve
from intel_ft.tables import Table

METHODS = 8  # answers to the prompt of a class, at most
FORMS_OF = 4  # the data set `forms` has every fourth function

Row = dict[str, str]


def forms(rows: list[Row]) -> list[Row]:
    """Some of the functions, each in four forms."""
    return [
        {"instruction": row["instruction"], "output": answer}
        for row in rows[::FORMS_OF]
        for answer in _forms_of(row["output"])
    ]


def _forms_of(source: str) -> tuple[str, ...]:
    tree = ast.parse(source)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    lines = source.split("\n")
    before, after = lines[: docstring.lineno - 1], lines[docstring.end_lineno :]
    first = f'    """{(ast.get_docstring(function) or "").split(chr(10))[0]}"""'
    return (
        source,
        "\n".join([*before, first, *after]),
        "\n".join([*before, *after]),
        ast.unparse(tree) + "\n",
    )


def methods(rows: list[Row]) -> list[Row]:
    """The methods of each class that has several, with the class as the prompt."""
    classes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        owner = row["name"].rpartition(".")[0]
        classes[row["module"], owner].append(row["output"])
    return [
        {"instruction": f"Write a method of the class `{owner}` of `{module}`.", "output": answer}
        for (module, owner), answers in classes.items()
        if owner and len(answers) > 1
        for answer in answers[:METHODS]
    ]


DATA = {"forms": forms, "methods": methods}


def make_data(folder: Path) -> None:
    """Write NAME-train.jsonl and NAME-heldout.jsonl for each data set."""
    for part, source in (("train", TRAIN), ("heldout", HELDOUT)):
        lines = Path(resolve(source)).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for name, make in DATA.items():
            made = "".join(f"{json.dumps(row)}\n" for row in make(rows))
            (folder / f"{name}-{part}.jsonl").write_text(made, encoding="utf-8")


def intel_ft(*arguments: str) -> dict[str, Any]:
    """The JSON output of `intel-ft`."""
    command = [sys.executable, "-m", "intel_ft", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(folder: Path, case: dict[str, Any], generate: int) -> dict[str, Any]:
    """Train once, evaluate the result and delete it."""
    config, run = folder / "config.yaml", folder / "run"
    config.write_text("train: {}\n", encoding="utf-8")
    trained = intel_ft(
        *("train", str(config), f"model.name_or_path={MODEL}", "model.dtype=bfloat16"),
        *(f"data.train={folder / case['data']}-train.jsonl", "data.template=tokenizer"),
        *("method.r=16", "method.alpha=32", f"train.max_steps={case['steps']}"),
        *(f"train.global_batch_size={case['batch']}", "train.learning_rate=0.002"),
        *(f"train.seed={case['seed']}", f"train.keep_answers_together={case['together']}"),
        *("train.save_steps=1000000", "train.report_to=[]", f"output.directory={run}"),
        "--overwrite",
    )
    heldout = str(folder / f"{case['data']}-heldout.jsonl")
    evaluated = intel_ft("eval", str(run), "--data", heldout, "--generate", str(generate))
    shutil.rmtree(run)
    facts = {"loss": evaluated["loss"], "parses": evaluated["parses"]}
    return {**facts, "shared_prefix_share": trained["shared_prefix_share"]}


def table(results: list[dict[str, Any]]) -> Table:
    """A row per data set, batch size and order, with the seeds' mean and each seed's loss."""

    def key(result: dict[str, Any]) -> tuple[str, int, bool]:
        return result["data"], result["batch"], result["together"]

    rows: list[tuple[str, ...]] = []
    for (data, batch, together), group in itertools.groupby(sorted(results, key=key), key):
        runs = list(group)
        losses = [run["loss"] for run in runs]
        rows.append(
            (
                data,
                str(batch),
                str(together).lower(),
                f"{statistics.fmean(run['shared_prefix_share'] for run in runs):.2f}",
                f"{statistics.fmean(losses):.4f}",
                " ".join(f"{loss:.4f}" for loss in losses),
                f"{statistics.fmean(run['parses'] for run in runs):.1%}",
            )
        )
    columns = ("examples per step", "together", "tokens shared", "loss", "each seed", "parses")
    return Table(("data", *columns), rows)


def main() -> None:
    """Measure what is not in results.jsonl yet, then print the table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for results.jsonl")
    parser.add_argument(
        "--seeds", type=int, default=[0, 1, 2], nargs="+", help="values of train.seed"
    )
    parser.add_argument("--data", choices=list(DATA), default=list(DATA), nargs="+")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument("--batch", type=int, default=[16], nargs="+", help="examples per step")
    parser.add_argument("--generate", type=int, default=60, help="answers generated by each result")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    make_data(arguments.output)
    record = arguments.output / "results.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    results = [json.loads(line) for line in lines]
    cases = itertools.product(arguments.seeds, arguments.batch, arguments.data, (True, False))
    for seed, batch, data, together in cases:
        case = {"data": data, "batch": batch, "together": together, "seed": seed}
        case["steps"] = arguments.steps
        if any(case.items() <= result.items() for result in results):
            continue
        results.append(case | measure(arguments.output, case, arguments.generate))
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(json.dumps(results[-1]), file=sys.stderr)
    print(table([one for one in results if one["steps"] == arguments.steps]).markdown())


if __name__ == "__main__":
    main()
