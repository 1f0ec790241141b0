"""TRL's SFTTrainer over oneCCL: one more import than over gloo.

mpirun -n 2 python examples/trl_sft.py MODEL DATA.jsonl OUTPUT

Each row of DATA has `instruction` and `output`.
"""

import sys

import torch.distributed as dist
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import intel_ft.distributed.oneccl.default_group  # noqa: F401  leave ddp_backend unset

name, data, output = sys.argv[1:]
rows = load_dataset("json", data_files=data, split="train")
rows = rows.rename_columns({"instruction": "prompt", "output": "completion"})
trainer = SFTTrainer(
    name,
    SFTConfig(
        output,
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=rows.select_columns(["prompt", "completion"]),
    peft_config=LoraConfig(target_modules="all-linear"),
)
trainer.train()

weights = sum(p.double().sum().item() for p in trainer.model.parameters() if p.requires_grad)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}, {dist.get_backend()}: {weights!r}")
