"""Small runs that compare answers: pairs or judged answers, and a config."""

import json
from pathlib import Path

from support.harness import write_config

WORDS = ("def", "return", "class", "import", "while", "yield", "lambda", "raise", "print", "pass")


def pairs(count: int, first: int = 0) -> list[dict[str, object]]:
    """Answers of one to five words; the chosen one is the shorter one."""
    rows: list[dict[str, object]] = []
    for place in range(first, first + count):
        words = [WORDS[(place * step) % len(WORDS)] for step in (1, 3, 7)]
        good = " ".join(words[: place % 2 + 1])
        rows.append(
            {
                "prompt": f"word {place} " * (place % 3 + 1),
                "chosen": good,
                "rejected": " ".join([*words, words[0]][: 3 + place % 2]),
            }
        )
    return rows


def judged(count: int, first: int = 0) -> list[dict[str, object]]:
    """The same answers one by one; every third pair has only one."""
    rows: list[dict[str, object]] = []
    for place, row in enumerate(pairs(count, first)):
        for name in ("chosen", "rejected") if place % 3 else ("chosen",):
            answer = {"prompt": row["prompt"], "completion": row[name]}
            rows.append(answer | {"label": name == "chosen"})
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fresh(folder: Path, base: Path, loss: str = "dpo", **method: object) -> Path:
    """A folder with data and config of a run of six steps of five examples.

    loss: of a preference method, or reward.
    """
    compares = {"name": "preference", "loss": loss, "beta": 0.5}
    folder.mkdir()
    make = judged if loss == "kto" else pairs
    write_rows(folder / "train.jsonl", make(23))
    write_rows(folder / "eval.jsonl", make(6, 50))
    write_config(
        folder / "config.yaml",
        model={"name_or_path": str(base), "dtype": "float32"},
        data={"eval": "eval.jsonl", "max_length": 64, "template": "alpaca"},
        method=({"name": "reward"} if loss == "reward" else compares) | method,
        train={
            "max_steps": 6,
            "global_batch_size": 5,
            "max_tokens_per_row": 320,
            "save_steps": 2,
            "eval_steps": 3,
            "learning_rate": 0.01,
        },
    )
    return folder
