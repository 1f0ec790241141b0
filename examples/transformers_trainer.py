"""Transformers' Trainer over oneCCL: one more import than over gloo.

mpirun -n 2 python examples/transformers_trainer.py MODEL DATA.jsonl OUTPUT

Each row of DATA has `instruction` and `output`.
"""

import sys

import torch.distributed as dist
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import intel_ft.distributed.oneccl.default_group  # noqa: F401  leave ddp_backend unset

name, data, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
model = get_peft_model(model, LoraConfig(target_modules="all-linear"))


def example(row):
    ids = tokenizer(row["instruction"] + "\n" + row["output"], truncation=True, max_length=128)
    return {"input_ids": ids["input_ids"], "labels": ids["input_ids"]}


rows = load_dataset("json", data_files=data, split="train")
trainer = Trainer(
    model,
    TrainingArguments(
        output,
        max_steps=3,
        per_device_train_batch_size=1,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=rows.map(example, remove_columns=rows.column_names),
)
trainer.train()

weights = sum(p.double().sum().item() for p in model.parameters() if p.requires_grad)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}, {dist.get_backend()}: {weights!r}")
