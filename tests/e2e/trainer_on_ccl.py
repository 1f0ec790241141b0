"""A user's own Trainer script: two lines make it use oneCCL. One rank of test_oneccl."""

import sys

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import intel_ft.distributed.oneccl  # noqa: F401 - the first line

dist.init_process_group("ccl")  # the second, before TrainingArguments

torch.manual_seed(0)
shape = LlamaConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=61,
)
model = get_peft_model(LlamaForCausalLM(shape), LoraConfig(target_modules="all-linear"))
rows = torch.randint(0, 61, (32, 16), generator=torch.Generator().manual_seed(1)).tolist()


class Agree(TrainerCallback):
    """After each step, all ranks have the same weights, although each saw other rows."""

    def on_step_end(self, args, state, control, model=None, **_):
        mine = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, mine)


trainer = Trainer(
    model,
    TrainingArguments(
        sys.argv[2] + ".out",
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    ),
    train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]),
    callbacks=[Agree()],
)
trainer.train()
assert trainer.accelerator.num_processes == dist.get_world_size()
assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
print(f"ok {dist.get_rank()}", flush=True)
