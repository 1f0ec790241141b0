"""A Llama of 0.1 M parameters that has memorized a page of Python, and an adapter for it."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from intel_ft import assets
from intel_ft.artifacts.provenance import Provenance
from intel_ft.config import build
from intel_ft.export import recover
from intel_ft.models.load import fingerprint
from intel_ft.templates.examples import Examples

PAGE = "".join(
    f'def {name}_{what}(values):\n    """Return the {name} of {what}."""\n'
    f"    return {name}(value.{what} for value in values)\n\n"
    for name in ("sum", "min", "max", "any")
    for what in ("size", "cost", "age", "weight", "name")
)
BASE_ID = "example/tiny-base"


def make_base(folder: Path) -> Path:
    """Base model folder, bf16 safetensors, trained for two seconds on PAGE."""
    split = Tokenizer(models.BPE())
    split.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    split.train_from_iterator(
        [PAGE],
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    model = make_model(len(tokenizer), 64)
    tokens = torch.tensor(tokenizer(PAGE)["input_ids"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slower with more, much slower on a busy machine
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        starts = torch.randint(0, len(tokens) - 65, (8,)).tolist()
        rows = torch.stack([tokens[start : start + 64] for start in starts])
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(vocabulary: int, hidden: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=True,
        )
    )


def make_adapter(base: Path, folder: Path, size: float = 0.05, **lora) -> Path:
    """An adapter folder as a run leaves it, with random weights and a visible effect."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * size)
    adapted.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(folder)
    provenance(str(base)).save(folder)
    return folder


def save_after_each_step() -> None:
    """Have a recovery of this process save its state after each step."""
    recover.SAVE_SECONDS = -1


def kill_recovery_after(steps: int) -> None:
    """Have this process killed once a recovery has saved its state after so many steps."""
    save_after_each_step()
    save = recover._save

    def save_and_die(path: Path, values: dict) -> None:
        save(path, values)
        if values["step"] == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    recover._save = save_and_die


def stop_recovery_in(step: int, number: int) -> None:
    """Have this process sent a signal in the step after `step` steps of a recovery."""
    recover.SAVE_SECONDS = 10**6
    batch = recover._batch

    def batch_and_stop(examples: Examples, at: int) -> list[int]:
        if at == step:
            os.kill(os.getpid(), number)
        return batch(examples, at)

    recover._batch = batch_and_stop


def provenance(base: str) -> Provenance:
    return Provenance("adapter", base, None, "alpaca", "Be brief.", "0.0.0")


def make_examples(tokenizer) -> Examples:
    """Functions of PAGE of different lengths, their bodies supervised."""
    functions = PAGE.split("\n\n")[:6]
    ids = [tokenizer(f"{text}</s>")["input_ids"][: 20 + 7 * i] for i, text in enumerate(functions)]
    tokens = np.concatenate([np.array(one, dtype=np.int32) for one in ids])
    offsets = np.cumsum([0, *map(len, ids)])
    supervised = np.ones(len(tokens), dtype=bool)
    for i, start in enumerate(offsets[:-1]):
        supervised[start : start + 5 + i] = False
    return Examples(tokens, supervised, offsets)


def make_run(folder: Path, *, size: float = 0.02, **lora) -> Path:
    """A finished run on the shipped model: what export reads of one.

    It has a random adapter, and a configuration with 24 training and 12 validation examples.
    """
    base = assets.resolve("tiny-python-llama")
    make_adapter(Path(base), folder / "adapter", size, **lora)
    Provenance(
        "adapter", "tiny-python-llama", None, "tokenizer", None, "0", fingerprint(Path(base))
    ).save(folder / "adapter")
    for name, count in (("train", 24), ("heldout", 12)):
        path = Path(assets.resolve(f"docstring-to-python/{name}.jsonl"))
        rows = sorted(path.read_text(encoding="utf-8").splitlines(), key=len)[40 : 40 + count]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config = build(
        {
            "model": {"name_or_path": "tiny-python-llama"},
            "data": {
                "train": str(folder / "train.jsonl"),
                "eval": str(folder / "heldout.jsonl"),
                "template": "tokenizer",
            },
            "output": {"directory": folder},
        },
        "test",
    )
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    step = {"step": 1, "loss": 1.5, "tokens": 900, "supervised_tokens": 400}
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n", encoding="utf-8")
    return folder
