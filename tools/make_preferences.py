"""Makes pairs of answers from the demo's data: short, valid Python, and text that does not parse.

    python tools/make_preferences.py FOLDER

writes to FOLDER train.jsonl and eval.jsonl (prompt, chosen, rejected), sft.yaml, the demo's
supervised run, and dpo.yaml, which trains its adapter further on the pairs.

The chosen answer is the data's own function. The rejected one is the same function, broken by a
seed in one of the ways in which a small model fails: a bracket or the colon of its first line is
lost, or words go on after it. None is cut off: preferring the longer one would teach to go on.
Every chosen answer parses and no rejected one does. Long functions are left out.

    intel-ft generate FOLDER/sft --input FOLDER/prompts.jsonl --n 4 --temperature 1 \
        --output FOLDER/answers.jsonl
    python tools/make_preferences.py FOLDER --answers FOLDER/answers.jsonl

makes train.jsonl from the supervised model's own answers instead: of those to one prompt, the
shortest that parses is preferred to each one that does not.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from intel_ft import assets
from intel_ft.inference.evaluate import is_python

LONGEST = 250
"""Characters of a chosen answer."""
LONGER = 0.5
"""Share of the rejected answers that are longer in any case."""
SETS = {"train": "docstring-to-python/train.jsonl", "eval": "docstring-to-python/heldout.jsonl"}


def without_bracket(code: str, choose: random.Random) -> str:
    """The code without one closing bracket."""
    places = [place for place, character in enumerate(code) if character in ")]}"]
    place = choose.choice(places) if places else len(code) - 1
    return code[:place] + code[place + 1 :]


def without_colon(code: str, choose: random.Random) -> str:
    """The code without the colon that ends its first line."""
    first, _, rest = code.partition("\n")
    return f"{first.rstrip().rstrip(':')}\n{rest}"


def repeated(code: str, choose: random.Random) -> str:
    """The code with words after it, which go on and on."""
    words = code.split()
    return f"{code}\n" + " ".join(choose.choice(words) for _ in range(40))


WAYS = (without_bracket, without_colon, repeated)


def pairs(rows: list[dict[str, str]], seed: int) -> Iterator[dict[str, str]]:
    """A pair for each row whose answer is short, valid Python; longer ones are left out."""
    choose = random.Random(seed)
    for row in rows:
        code = row["output"].strip()
        if len(code) > LONGEST or not is_python(code):
            continue
        ways = choose.sample(WAYS, len(WAYS))
        if choose.random() < LONGER:
            ways.insert(0, repeated)
        broken = (way(code, choose) for way in ways)
        rejected = next((text for text in broken if text.strip() and not is_python(text)), None)
        if rejected is not None:
            yield {"prompt": row["instruction"], "chosen": code, "rejected": rejected}


def pairs_of_answers(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """A pair for each answer of a model that does not parse, if another to its prompt does."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    for prompt, answers in by_prompt.items():
        valid = [
            one["text"].strip() for one in answers if one["stopped"] and is_python(one["text"])
        ]
        broken = {one["text"].strip() for one in answers if not is_python(one["text"])} - {""}
        for text in sorted(broken) if valid else ():
            yield {"prompt": prompt, "chosen": min(valid, key=len), "rejected": text}


def config(folder: Path, steps: int, learning_rate: float, seed: int) -> str:
    """A DPO run on the pairs, which starts from the adapter of the supervised run."""
    values = {
        "model": {"name_or_path": "tiny-python-llama", "adapter": str(folder / "sft")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "template": "tokenizer",
            "max_length": 512,
            "on_long": "drop",
        },
        "method": {"name": "preference", "loss": "dpo", "beta": 0.1, "sft_weight": 1.0},
        "train": {
            "max_steps": steps,
            "global_batch_size": 16,
            "learning_rate": learning_rate,
            "eval_steps": max(1, steps // 4),
            "seed": seed,
        },
        "output": {"directory": str(folder / "dpo")},
    }
    return yaml.safe_dump(values, sort_keys=False)


def sft_config(folder: Path, steps: int, seed: int) -> str:
    """The demo's supervised run, which comes first."""
    values = {
        "model": {"name_or_path": "tiny-python-llama"},
        "data": {
            "train": SETS["train"],
            "eval": SETS["eval"],
            "template": "tokenizer",
            "max_length": 512,
            "on_long": "drop",
        },
        "train": {
            "max_steps": steps,
            "learning_rate": 3e-3,
            "eval_steps": steps,
            "seed": seed,
        },
        "output": {"directory": str(folder / "sft")},
    }
    return yaml.safe_dump(values, sort_keys=False)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the files that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--answers", type=Path, help="a model's answers to prompts.jsonl")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, source in SETS.items():
        rows = read_rows(Path(assets.resolve(source)))
        made = list(pairs(rows, options.seed))
        print(f"{name}.jsonl: {len(made):,} pairs of {len(rows):,} examples")
        if name == "train":
            prompts = [{"prompt": pair["prompt"]} for pair in made]
            write_rows(options.folder / "prompts.jsonl", prompts)
            if options.answers is not None:
                made = list(pairs_of_answers(read_rows(options.answers)))
                print(f"replaced by {len(made):,} pairs of the answers in {options.answers}")
        write_rows(options.folder / f"{name}.jsonl", made)
    folder = options.folder.resolve()
    (folder / "sft.yaml").write_text(
        sft_config(folder, options.steps, options.seed), encoding="utf-8"
    )
    dpo = config(folder, options.steps, options.learning_rate, options.seed)
    (folder / "dpo.yaml").write_text(dpo, encoding="utf-8")
    print(
        f"intel-ft train {folder}/sft.yaml\n"
        f"intel-ft eval {folder}/sft --data {folder}/eval.jsonl --generate 100\n"
        f"intel-ft train {folder}/dpo.yaml\n"
        f"intel-ft eval {folder}/dpo --data {folder}/eval.jsonl --generate 100\n"
        f"intel-ft merge {folder}/dpo --output {folder}/merged\n"
        f"intel-ft export {folder}/merged --output {folder}/openvino --format int8"
        f" --data {folder}/eval.jsonl"
    )


if __name__ == "__main__":
    main()
