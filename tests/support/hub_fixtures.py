"""A finished run for `push`, without any training: real records, random weights."""

import json
import random
from pathlib import Path

from intel_ft.artifacts.provenance import Provenance
from intel_ft.config import build

HOST = "node17.cluster.example"


def make_run(folder: Path, base: str = "tiny-python-llama", template: str = "alpaca") -> Path:
    """A run folder: adapter (700 kB of weights), records, and what must never be published."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    config = build(
        {
            "model": {"name_or_path": base},
            "data": {
                "train": "someone/python-questions",
                "eval": "/home/someone/data/heldout.jsonl",
                "template": template,
                "system_prompt": "Be brief.",
            },
            "method": {"r": 12, "alpha": 24, "dropout": 0.05},
            "train": {"max_steps": 7, "global_batch_size": 9, "learning_rate": 0.00037},
            "output": {"directory": folder},
        },
        "test",
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    metrics = [
        {"step": step, "loss": 2.0 / step, "tokens": 4001 + step, "supervised_tokens": 1999 + step}
        for step in range(1, 8)
    ]
    evaluations = [{"step": 4, "eval_loss": 0.71234}, {"step": 7, "eval_loss": 0.81234}]
    lines = map(json.dumps, [*metrics, *evaluations])
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    environment = {
        "intel_ft": "0.1.0",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0+cpu", "peft": "0.21.2"},
        "host": HOST,
        "cpu": "Intel(R) Xeon(R) Platinum 8592+",
        "isa": ["amx_bf16", "avx512_bf16"],
        "ranks": 3,
        "threads": 28,
        "decisions": [{"name": "threads", "value": "28", "reason": f"cores of {HOST}"}],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "train.log").write_text(f"on {HOST} in {folder}\n")
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"moments")
    write_adapter(adapter, base, template)
    return folder


def write_adapter(adapter: Path, base: str, template: str) -> None:
    weights = random.Random(0).randbytes(700_000)
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 12, "lora_alpha": 24}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/home/x/y": 1}}}))
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(tokens))
    (adapter / "trainer_state.json").write_text("{}")
    Provenance("adapter", base, None, template, "Be brief.", "0.1.0").save(adapter)
