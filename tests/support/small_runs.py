"""Runs of a second on a random Llama: two bases of the same shapes, data, and a config."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from intel_ft.assets import resolve
from intel_ft.config import Config, build

WORDS = ("def", "return", "class", "import", "while", "yield", "lambda", "raise")
ROWS = [{"prompt": f"word {i}", "completion": word} for i, word in enumerate(WORDS)]
FLIPPED = [
    {"prompt": row["prompt"], "completion": word}
    for row, word in zip(ROWS, reversed(WORDS), strict=True)
]


def make_bases(folder: Path) -> Path:
    """Two models of the same shapes, `one` and `other`."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny-python-llama"))
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_in(folder: Path, *, method=None, data=None, **settings) -> Config:
    """Four steps with checkpoints and evaluations after the second and the fourth."""
    plain = {
        "max_steps": 4,
        "global_batch_size": 8,
        "save_steps": 2,
        "eval_steps": 2,
        "scheduler": "linear",
        "warmup_ratio": 0.0,
        "learning_rate": 0.02,
        "max_tokens_per_row": 128,
        "report_to": [],
    }
    files = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    return build(
        {
            "model": {"name_or_path": str(folder / "base"), "dtype": "float32"},
            "data": files | {"template": "alpaca", "max_length": 128} | (data or {}),
            "method": {"r": 4} | (method or {}),
            "train": plain | settings,
            "backend": {"threads": 1},
            "output": {"directory": str(folder / "run")},
        },
        "test",
    )


def fill(folder: Path, bases: Path) -> None:
    """Put data and base `one` into a folder."""
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "eval.jsonl", FLIPPED)
    shutil.copytree(bases / "one", folder / "base")
