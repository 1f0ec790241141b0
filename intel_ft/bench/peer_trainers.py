"""The peers' sides of the benchmark: other trainers on the same examples, set up as their own
documentation says for a CPU or a GPU; called from insight.side.

All take LoRA on all linear layers through peft, a bf16 model under bf16 autocast, sdpa attention,
and as many examples an optimizer step as ours.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainingArguments

from intel_ft.backends.choice import device_of
from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import Plan
from intel_ft.bench.step_timer import StepTimer, Tally
from intel_ft.bench.task import Task
from intel_ft.bench.workloads import lora_config, random_model
from intel_ft.data.examples import Examples
from intel_ft.distributed.world import World
from intel_ft.host import devices


def peer_trainer(
    task: Task, examples: Examples, folder: Path, world: World, optimize: Optimize | None = None
) -> tuple[Any, StepTimer]:
    """The peer's Trainer, and the stopwatch that ends its training, after the same step on all
    ranks of `world`. `optimize`: see backends.cpu.Backend; it is what IPEX's own fine-tuning
    examples do before training.
    """
    device = device_of(task.backend, world.local_rank)
    model = random_model(task.workload, task.seed, "sdpa", device)
    if task.base_dtype == "nf4":
        _quantize(model)
    devices.reset_peak(device)
    tally = Tally()
    if task.contender.startswith("trl"):
        trainer = _trl(task, model, examples, folder, tally)
    else:
        trainer = _transformers(task, model, examples, folder, tally)
    if optimize is not None:
        optimize(trainer.model, trainer.create_optimizer())
    watch = StepTimer(tally, task.seconds, world=world)
    trainer.add_callback(watch)
    return trainer, watch


def _trl(task: Task, model: Any, examples: Examples, folder: Path, tally: Tally) -> Any:
    """SFTTrainer: padded batches, or its `bfd` packing, one row a forward.

    Packing makes TRL flatten a batch into one sequence whose position ids restart, and Transformers
    builds a block mask from them for sdpa. The mask is the batch's tokens squared, so on a CPU one
    row a forward is the quickest.
    """
    from trl import SFTConfig, SFTTrainer

    packed = task.contender == "trl-packed"
    row = task.peer_row_tokens or task.workload.row_tokens
    rows = round(_share(task) * float(examples.lengths.mean()) / row)
    arguments = SFTConfig(
        **_arguments(task, folder, *((1, max(1, rows)) if packed else _padded(task))),
        completion_only_loss=True,
        packing=packed,
        max_length=row if packed else None,
    )
    return _counted(SFTTrainer, tally, shuffled=packed)(
        model=model,
        args=arguments,
        train_dataset=_dataset(task, examples, "completion_mask", kept=1, masked=0),
        processing_class=_tokenizer(),
        peft_config=lora_config(task.rank),
    )


def _transformers(task: Task, model: Any, examples: Examples, folder: Path, tally: Tally) -> Any:
    """The plain Trainer with padded batches."""
    from peft import get_peft_model

    return _counted(Trainer, tally)(
        model=get_peft_model(model, lora_config(task.rank)),
        args=TrainingArguments(**_arguments(task, folder, *_padded(task))),
        train_dataset=_dataset(task, examples, "labels", kept=None, masked=-100),
        data_collator=DataCollatorForSeq2Seq(_tokenizer()),
    )


def _quantize(model: Any) -> None:
    """What `from_pretrained` with BitsAndBytesConfig(load_in_4bit, "nf4", double quantization,
    bf16 compute) makes of a model; that reads a folder, which a random model would have to fill.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    settings = {"compress_statistics": True, "quant_type": "nf4"}
    head = model.get_output_embeddings()
    linears = [(n, m) for n, m in model.named_modules() if type(m) is torch.nn.Linear]
    for name, linear in [(n, m) for n, m in linears if m is not head]:
        with torch.device("meta"):
            quantized = Linear4bit(
                *(linear.in_features, linear.out_features, False, torch.bfloat16), **settings
            )
        weight = Params4bit(linear.weight.data, requires_grad=False, **settings)
        quantized.weight = weight.to(linear.weight.device)
        model.set_submodule(name, quantized)
        del linear.weight
    model.is_loaded_in_4bit = True


def _padded(task: Task) -> tuple[int, int]:
    """Examples a forward, and forwards an optimizer step, of each process."""
    share = _share(task)
    batch = min(task.peer_batch, share)
    return batch, -(-share // batch)


def _share(task: Task) -> int:
    """Examples of one process an optimizer step."""
    return -(-task.workload.batch // task.processes)


def _arguments(task: Task, folder: Path, batch: int, accumulation: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 10**6,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 2e-4,
        "seed": task.seed,
        "bf16": True,
        "use_cpu": task.backend == "cpu",
        "gradient_checkpointing": task.peer_checkpointing,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _dataset(task: Task, examples: Examples, mask: str, kept: int | None, masked: int) -> Any:
    """Token ids and a mask column: `kept` (None: the token) where supervised, else `masked`. In the
    order in which our own side trains on them, so that a step has the same examples.
    """
    from datasets import Dataset

    load = task.workload
    plan = Plan(
        examples.lengths, examples.supervised_counts, load.batch, load.row_tokens, task.seed
    )
    rows = []
    for step in plan.steps(0, plan.steps_per_epoch):
        for index in step.examples:
            tokens, supervised = examples[int(index)]
            values = tokens if kept is None else kept
            marked = torch.where(torch.from_numpy(supervised), torch.as_tensor(values), masked)
            rows.append({"input_ids": tokens.tolist(), mask: marked.tolist()})
    return Dataset.from_list(rows)


def _tokenizer() -> Any:
    """Trainers ask it for the padding id and how to pad; it never sees text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
    )


def _counted(trainer: Any, tally: Tally, shuffled: bool = False) -> Any:
    """`trainer`, a Trainer class, adding each batch's examples to `tally` as it trains on it, in
    the dataset's order unless they are to be `shuffled`.
    """

    class Counted(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *dataset: Any) -> Any:
            if shuffled:
                return super()._get_train_sampler(*dataset)
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            tally.add(_segment_lengths(inputs), int((inputs["labels"] != -100).sum()))
            return super().training_step(model, inputs, *rest, **more)

    return Counted


def _segment_lengths(inputs: Any) -> list[int]:
    """Real tokens of each example in a batch, padded or flattened."""
    if "attention_mask" in inputs:
        lengths = inputs["attention_mask"].sum(1)
    else:
        lengths = inputs["cu_seq_lens_q"].diff()
    return [int(length) for length in lengths]
