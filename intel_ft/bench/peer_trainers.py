"""The peers of `bench train`: other trainers on the same examples.

Each is set up for a CPU or a GPU as its documentation says. All use LoRA on all linear layers
through peft, a bf16 model under bf16 autocast, sdpa attention, and the own trainer's batch size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainingArguments

from intel_ft.backends.choice import device_of
from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import Plan
from intel_ft.bench.step_timer import StepTimer, Tally
from intel_ft.bench.task import EAGER_EXPERTS, Task
from intel_ft.bench.workloads import lora_config, random_model
from intel_ft.distributed.world import World
from intel_ft.host import devices
from intel_ft.templates.answers import segments_in
from intel_ft.templates.examples import Examples


def peer_trainer(
    task: Task, examples: Examples, folder: Path, world: World, optimize: Optimize | None = None
) -> tuple[Any, StepTimer]:
    """The peer's Trainer, and the timer that ends its training.

    All ranks of `world` stop after the same step. `optimize` is described at backends.cpu.Backend;
    IPEX's own fine-tuning examples do the same before training.
    """
    device = device_of(task.backend, world.local_rank)
    experts = "eager" if task.contender == EAGER_EXPERTS else None
    model = random_model(task.workload, task.seed, "sdpa", device, experts)
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
    timer = StepTimer(tally, task.seconds, world=world)
    trainer.add_callback(timer)
    return trainer, timer


def _trl(task: Task, model: Any, examples: Examples, folder: Path, tally: Tally) -> Any:
    """SFTTrainer with padded batches, or with its `bfd` packing and one row per forward pass.

    With packing, TRL flattens a batch into one sequence whose position ids restart, and
    Transformers builds a block mask from them for sdpa. The mask grows with the square of the
    batch's tokens, so one row per forward pass is fastest on a CPU.
    """
    if task.workload.loss == "dpo":
        return _trl_dpo(task, model, examples, folder, tally)
    from trl import SFTConfig, SFTTrainer

    packed = task.contender == "trl-packed"
    row = task.peer_row_tokens or task.workload.row_tokens
    rows = round(_examples_per_process(task) * float(examples.lengths.mean()) / row)
    batch, accumulation = (1, max(1, rows)) if packed else _padded_batch(task)
    arguments = SFTConfig(
        **_arguments(task, folder, batch, accumulation),
        completion_only_loss=True,
        packing=packed,
        max_length=row if packed else None,
    )
    return _counted(SFTTrainer, tally, shuffled=packed)(
        model=model,
        args=arguments,
        train_dataset=_dataset(task, examples, "completion_mask", supervised_value=1, masked=0),
        processing_class=_tokenizer(),
        peft_config=lora_config(model, task.rank),
    )


def _trl_dpo(task: Task, model: Any, examples: Examples, folder: Path, tally: Tally) -> Any:
    """DPOTrainer with padded batches, which computes the reference in each step, as by default."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    batch, accumulation = _padded_batch(task)
    rows = []
    for index in _in_order(task, examples):
        answers, (chosen, rejected) = segments_in(examples, np.array([index]))
        tokens, supervised = answers[int(chosen)]
        prompt = int(np.flatnonzero(supervised)[0])
        rows.append(
            {
                "prompt_ids": tokens[:prompt].tolist(),
                "chosen_ids": tokens[prompt:].tolist(),
                "rejected_ids": answers[int(rejected)][0][prompt:].tolist(),
            }
        )

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # it has token ids already

    arguments = DPOConfig(**_arguments(task, folder, batch, accumulation), max_length=None)
    return _counted(Tokenized, tally)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora_config(model, task.rank),
    )


def _transformers(task: Task, model: Any, examples: Examples, folder: Path, tally: Tally) -> Any:
    """Transformers' Trainer with padded batches."""
    from peft import get_peft_model

    batch, accumulation = _padded_batch(task)
    return _counted(Trainer, tally)(
        model=get_peft_model(model, lora_config(model, task.rank)),
        args=TrainingArguments(**_arguments(task, folder, batch, accumulation)),
        train_dataset=_dataset(task, examples, "labels", supervised_value=None, masked=-100),
        data_collator=DataCollatorForSeq2Seq(_tokenizer()),
    )


def _quantize(model: Any) -> None:
    """Quantize a model to NF4 in place.

    The result is that of `from_pretrained` with BitsAndBytesConfig(load_in_4bit, "nf4", double
    quantization, bf16 compute), which would need the random model to be written to a folder first.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    settings = {"compress_statistics": True, "quant_type": "nf4"}
    head = model.get_output_embeddings()
    linears = [(n, m) for n, m in model.named_modules() if type(m) is torch.nn.Linear]
    for name, linear in [(n, m) for n, m in linears if m is not head]:
        with torch.device("meta"):
            quantized = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                **settings,
            )
        weight = Params4bit(linear.weight.data, requires_grad=False, **settings)
        quantized.weight = weight.to(linear.weight.device)
        model.set_submodule(name, quantized)
        del linear.weight
    model.is_loaded_in_4bit = True


def _padded_batch(task: Task) -> tuple[int, int]:
    """Each process's examples per forward pass, and forward passes per optimizer step."""
    examples = _examples_per_process(task)
    batch = min(task.peer_batch, examples)
    return batch, -(-examples // batch)


def _examples_per_process(task: Task) -> int:
    """Examples of one process in an optimizer step."""
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


def _dataset(
    task: Task, examples: Examples, mask: str, supervised_value: int | None, masked: int
) -> Any:
    """A dataset of token ids and a mask column.

    The mask is `supervised_value` (None: the token itself) for supervised tokens, else `masked`.
    The order is that of the own trainer, so that each step has the same examples.
    """
    from datasets import Dataset

    rows = []
    for index in _in_order(task, examples):
        tokens, supervised = examples[index]
        values = torch.as_tensor(tokens if supervised_value is None else supervised_value)
        column = torch.where(torch.from_numpy(supervised), values, masked)
        rows.append({"input_ids": tokens.tolist(), mask: column.tolist()})
    return Dataset.from_list(rows)


def _in_order(task: Task, examples: Examples) -> list[int]:
    """The examples in the order in which the own trainer takes them."""
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=task.workload.batch,
        max_tokens_per_row=task.workload.row_tokens,
        seed=task.seed,
    )
    return [int(index) for step in plan.steps(0, plan.steps_per_epoch) for index in step.examples]


def _tokenizer() -> Any:
    """A tokenizer for the padding id and the padding itself; it never encodes text."""
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
    """A subclass of the Trainer class `trainer` that adds each batch it trains on to `tally`.

    It trains in the order of the dataset unless `shuffled`.
    """

    class Counted(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *dataset: Any) -> Any:
            if shuffled:
                return super()._get_train_sampler(*dataset)
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            pairs = "completion_mask" in inputs
            mask = inputs["completion_mask"] == 1 if pairs else inputs["labels"] != -100
            tally.add(_segment_lengths(inputs), int(mask.sum()))
            return super().training_step(model, inputs, *rest, **more)

    return Counted


def _segment_lengths(inputs: Any) -> list[int]:
    """The length of each example in a padded or flattened batch, without padding."""
    if "attention_mask" in inputs:
        lengths = inputs["attention_mask"].sum(1)
    else:
        lengths = inputs["cu_seq_lens_q"].diff()
    return [int(length) for length in lengths]
