"""Creates the shipped tiny Python model: corpus and tokenizer, training, model card.

    python tools/pretrain_tiny.py corpus --output corpus.npz
    python tools/pretrain_tiny.py train --corpus corpus.npz --output model --tokens 400000000
    python tools/pretrain_tiny.py card

The demo and the tests need a model that is small enough to ship but has learned something: with
random weights, quantization cannot hurt it and fine-tuning hardly improves it. The corpus is this
Python's standard library without the modules of the validation set (`build_dataset.heldout`).
`train` needs only torch, transformers, tokenizers, safetensors and numpy, so it can run on another
machine with a GPU.
"""

import argparse
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from build_dataset import ASSETS, heldout, library_files, read_python

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

MODEL = ASSETS / "tiny-python-llama"
VOCABULARY = 4096
CONTEXT = 1024  # tokens
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LARGEST_FILE = 400_000  # bytes; larger files are generated tables
PROMPTS = (
    "import os\n\n\ndef read_lines(path):",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):",
    "import re\nimport sys\n\n\ndef main():",
)

# GPT-2's pre-tokenizer, changed for Python: a line break and the following indentation form one
# token, and each digit is a separate token.
PRE_TOKENS = r"\n+[ \t]*| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The sizes in which the presets differ; attention heads have 64 dimensions."""

    hidden: int
    intermediate: int
    layers: int


PRESETS = {"tiny": Shape(256, 704, 8), "small": Shape(512, 1408, 8)}


@dataclass(frozen=True)
class Corpus:
    """What `corpus` writes for `train`: token streams of `<s> document </s>`, and their origin."""

    train: np.ndarray  # uint16 [tokens]
    heldout: np.ndarray  # uint16 [tokens]
    train_bytes: int  # UTF-8, without the special tokens
    heldout_bytes: int
    python_version: str


# corpus ---------------------------------------------------------------------------------------


def collect() -> tuple[list[str], list[str]]:
    """The documents (whole files) to train on, and those of the validation modules."""
    parts: tuple[list[str], list[str]] = ([], [])
    for module, path in library_files():
        if module.startswith("lib2to3.tests.data") or path.stat().st_size > LARGEST_FILE:
            continue
        source = read_python(path)
        if source and source.strip():
            parts[heldout(module)].append(source)
    return parts


def train_tokenizer(documents: list[str]) -> "Tokenizer":
    """A byte-level BPE of `VOCABULARY` entries; decoding restores any text exactly."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,  # no entries for rulers of 70 dashes
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: Path) -> None:
    """Write the folder that `AutoTokenizer` loads.

    It does not use `save_pretrained`: Transformers 5 would name the class `TokenizersBackend`,
    which earlier versions and other tools do not know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)


def encode_stream(tokenizer: "Tokenizer", documents: list[str]) -> np.ndarray:
    """All documents as one uint16 stream of `<s> document </s>`.

    Sources that contain the text `</s>` must not end a document; `encode_special_tokens` encodes
    such text as plain characters.
    """
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.encode_special_tokens = True
    stream: list[int] = []
    for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False):
        stream += [bos, *encoding.ids, eos]
    tokenizer.encode_special_tokens = False
    return np.array(stream, dtype=np.uint16)


def make_corpus(arguments: argparse.Namespace) -> None:
    """The `corpus` verb: train and save the tokenizer, encode the documents, write the .npz."""
    train, validation = collect()
    tokenizer = train_tokenizer(train)
    save_tokenizer(tokenizer, arguments.assets)
    corpus = Corpus(
        train=encode_stream(tokenizer, train),
        heldout=encode_stream(tokenizer, validation),
        train_bytes=sum(len(document.encode()) for document in train),
        heldout_bytes=sum(len(document.encode()) for document in validation),
        python_version=platform.python_version(),
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("wb") as file:
        np.savez_compressed(file, **asdict(corpus))
    for name, documents, stream in (
        ("train", train, corpus.train),
        ("heldout", validation, corpus.heldout),
    ):
        size = sum(len(document.encode()) for document in documents)
        print(
            f"{name}: {len(documents)} files, {size:,} bytes, {len(stream):,} tokens, "
            f"{size / len(stream):.2f} bytes per token"
        )
    print(
        f"{tokenizer.get_vocab_size()} entries; {arguments.output.stat().st_size:,} bytes written"
    )


def read_corpus(path: Path) -> Corpus:
    """Read the corpus that `make_corpus` wrote."""
    with np.load(path) as arrays:
        return Corpus(
            train=arrays["train"],
            heldout=arrays["heldout"],
            train_bytes=int(arrays["train_bytes"]),
            heldout_bytes=int(arrays["heldout_bytes"]),
            python_version=str(arrays["python_version"]),
        )


# train ----------------------------------------------------------------------------------------


def build_model(shape: Shape, tokenizer: "Tokenizer") -> "PreTrainedModel":
    """A LlamaForCausalLM in fp32 with random weights.

    They are N(0, 0.02); the projections that write to the residual stream are divided by
    sqrt(2 layers), as in GPT-2 (Radford et al. 2019, section 2.3).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * shape.layers) ** -0.5)
    return model


def unigram_perplexity(train: np.ndarray, validation: np.ndarray) -> float:
    """Validation perplexity of add-one smoothed token frequencies: a model without context."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1
    log_probabilities = np.log(counts / counts.sum())
    return float(np.exp(-log_probabilities[validation[1:]].mean()))


def loss_of(model: "PreTrainedModel", windows: "torch.Tensor", reduction: str) -> "torch.Tensor":
    """Next-token cross-entropy of `windows` (int64 [batch, length + 1]) in nats, in bf16."""
    import torch
    import torch.nn.functional as F

    with torch.autocast(windows.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:].reshape(-1)
    return F.cross_entropy(logits.float().view(-1, VOCABULARY), targets, reduction=reduction)


def heldout_nats(model: "PreTrainedModel", stream: "torch.Tensor", rows: int) -> float:
    """Mean loss in nats per token over `stream`, cut into non-overlapping windows of `CONTEXT`.

    Every token except the first is predicted once, from the tokens before it in its window. The
    last window has the remaining tokens.
    """
    import torch

    whole = (len(stream) - 1) // CONTEXT
    starts = torch.arange(whole, device=stream.device) * CONTEXT
    span = torch.arange(CONTEXT + 1, device=stream.device)
    chunks = starts.split(rows)  # type: ignore[no-untyped-call]
    batches = [stream[chunk[:, None] + span].long() for chunk in chunks if len(chunk)]
    if whole * CONTEXT + 1 < len(stream):
        batches.append(stream[None, whole * CONTEXT :].long())
    total = torch.zeros((), device=stream.device, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            total += loss_of(model, batch, "sum").double()
    model.train()
    return total.item() / (len(stream) - 1)


def random_windows(stream: "torch.Tensor", rows: int, seed: int) -> Iterator["torch.Tensor"]:
    """Yield int64 [rows, CONTEXT + 1] forever; each epoch cuts the stream at another offset.

    The stream and the order stay on the device, so nothing here waits for it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    span = torch.arange(CONTEXT + 1, device=stream.device)
    waiting = torch.empty(0, dtype=torch.int64, device=stream.device)
    while True:
        while len(waiting) < rows:
            offset = int(torch.randint(CONTEXT, (), generator=generator))
            windows = (len(stream) - 1 - offset) // CONTEXT
            order = torch.randperm(windows, generator=generator) * CONTEXT + offset
            waiting = torch.cat([waiting, order.to(stream.device)])
        chosen, waiting = waiting[:rows], waiting[rows:]
        yield stream[chosen[:, None] + span].long()


def optimizer_of(
    model: "PreTrainedModel", learning_rate: float, weight_decay: float, fused: bool
) -> "torch.optim.AdamW":
    """AdamW with weight decay on matrices only."""
    import torch

    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)


def compiled_or_not(
    model: "PreTrainedModel", example: "torch.Tensor", enabled: bool
) -> "PreTrainedModel":
    """`torch.compile(model)` if its forward and backward pass work, else `model` itself."""
    import torch

    if not enabled:
        return model
    try:
        compiled = torch.compile(model)
        loss_of(compiled, example, "mean").backward()  # type: ignore[no-untyped-call]
        print("torch.compile: on", flush=True)
    except Exception as error:  # the model trains without the compiler, too
        print(f"torch.compile: off ({type(error).__name__}: {str(error)[:200]})", flush=True)
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled


def learning_rate_at(step: int, warmup: int, progress: float) -> float:
    """Factor of the peak rate: linear warmup, then cosine decay with `progress` to 10 %."""
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / warmup) * cosine


@dataclass(frozen=True)
class Budget:
    """When training ends: after `steps` or `seconds` of wall clock, whichever comes first."""

    steps: int
    seconds: float
    rows: int  # windows a step
    eval_every: int  # steps


def fit(
    model: "PreTrainedModel",
    windows: Iterator["torch.Tensor"],
    measure: Callable[[], float],
    budget: Budget,
    arguments: argparse.Namespace,
) -> int:
    """Train `model` in place and return the number of steps; it ends with its best weights.

    The learning rate follows the budget (steps or seconds) that is closer to its end, so it decays
    completely even if the time runs out first. `measure` returns the validation loss in nats, which
    decides which weights are best.
    """
    import torch

    example = next(windows)
    on_gpu = example.device.type == "cuda"
    optimizer = optimizer_of(model, arguments.learning_rate, arguments.weight_decay, fused=on_gpu)
    runner = compiled_or_not(model, example, on_gpu and not arguments.no_compile)
    warmup = max(1, min(200, budget.steps // 50))
    best = math.inf
    best_weights: dict[str, torch.Tensor] = {}
    running = torch.zeros((), device=example.device)
    start, step, since, progress = time.perf_counter(), 0, 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * learning_rate_at(step, warmup, progress)
        loss = loss_of(runner, next(windows), "mean")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.detach()
        step, since = step + 1, since + 1
        spent = time.perf_counter() - start
        progress = max(step / budget.steps, spent / budget.seconds)
        if step % budget.eval_every == 0 or progress >= 1:
            mean = running.item() / since  # only this branch waits for the device
            spent = time.perf_counter() - start
            nats = measure()
            improved = nats < best
            if improved:
                best = nats
                state = model.state_dict()
                best_weights = {name: value.detach().clone() for name, value in state.items()}
            print(
                f"step {step}/{budget.steps}  {spent:.0f} s  "
                f"{step * budget.rows * CONTEXT / spent:,.0f} token/s  train loss {mean:.4f}  "
                f"validation perplexity {math.exp(min(nats, 50)):.3f}"
                f"{' (best)' if improved else ''}",
                flush=True,
            )
            running.zero_()
            since = 0
    if best_weights:  # empty if every validation loss was NaN
        model.load_state_dict(best_weights)
    return step


def write_samples(
    model: "PreTrainedModel", tokenizer: "Tokenizer", device: str
) -> list[dict[str, str]]:
    """Continue each of `PROMPTS` by up to 96 tokens at temperature 0.7; its index is the seed."""
    import torch

    samples = []
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        ids = torch.tensor([tokenizer.encode(prompt).ids], device=device)
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=96,
            do_sample=True,
            temperature=0.7,
            top_k=0,
            top_p=0.95,
        )
        completion = tokenizer.decode(generated[0, ids.shape[1] :].tolist())
        samples.append({"prompt": prompt, "completion": completion})
    return samples


def train(arguments: argparse.Namespace) -> None:
    """The `train` verb: train on a corpus; write a model folder with its training.json."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    corpus = read_corpus(arguments.corpus)
    tokenizer = Tokenizer.from_file(str(arguments.assets / "tokenizer.json"))
    if tokenizer.get_vocab_size() != VOCABULARY or corpus.train.max() >= VOCABULARY:
        raise SystemExit(
            "the corpus does not match the tokenizer in --assets: run the corpus verb again"
        )
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")

    default_batch = 65536 if device.startswith("cuda") else 8192
    rows = max(1, (arguments.batch_tokens or default_batch) // CONTEXT)
    steps = max(1, arguments.tokens // (rows * CONTEXT))
    budget = Budget(
        steps=steps,
        seconds=arguments.minutes * 60 if arguments.minutes else math.inf,
        rows=rows,
        eval_every=arguments.eval_every or max(1, min(200, steps // 10)),
    )
    # int32 instead of the corpus's uint16: torch cannot index uint16 on every device.
    stream = torch.from_numpy(corpus.train.astype(np.int32)).to(device)
    validation = torch.from_numpy(corpus.heldout.astype(np.int32)).to(device)
    sample = validation[: arguments.eval_tokens + 1] if arguments.eval_tokens else validation

    model = build_model(PRESETS[arguments.preset], tokenizer).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters:,} parameters on {device}; {len(stream):,} training and "
        f"{len(validation):,} validation tokens; {steps} steps of {rows * CONTEXT:,} tokens",
        flush=True,
    )
    begin = time.perf_counter()
    windows = random_windows(stream, rows, arguments.seed)
    taken = fit(model, windows, lambda: heldout_nats(model, sample, rows), budget, arguments)

    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(arguments.output)
    (arguments.output / "model.safetensors").chmod(0o644)  # safetensors writes 0600
    for name in TOKENIZER_FILES:
        if arguments.output.resolve() != arguments.assets.resolve():
            shutil.copyfile(arguments.assets / name, arguments.output / name)
    nats = heldout_nats(model, validation, rows)
    seconds = time.perf_counter() - begin
    tokens = taken * rows * CONTEXT
    record = {
        "preset": arguments.preset,
        "python_version": corpus.python_version,
        "parameters": parameters,
        "train_tokens": len(stream),
        "train_bytes": corpus.train_bytes,
        "heldout_tokens": len(validation),
        "heldout_bytes": corpus.heldout_bytes,
        "tokens_seen": tokens,
        "epochs": round(tokens / len(stream), 2),
        "steps": taken,
        "batch_tokens": rows * CONTEXT,
        "learning_rate": arguments.learning_rate,
        "weight_decay": arguments.weight_decay,
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "torch_version": torch.__version__,
        "heldout_perplexity": math.exp(nats),
        "unigram_heldout_perplexity": unigram_perplexity(corpus.train, corpus.heldout),
        "heldout_bits_per_byte": nats * (len(validation) - 1) / math.log(2) / corpus.heldout_bytes,
        "samples": [],
    }
    write_json(arguments.output / "training.json", record)  # before sampling, which may fail
    model.eval()
    record["samples"] = write_samples(model, tokenizer, device)
    write_json(arguments.output / "training.json", record)
    print(json.dumps(record, indent=2))


# card -----------------------------------------------------------------------------------------


CARD = """\
---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
library_name: transformers
pipeline_tag: text-generation
language:
- code
tags:
- python
- llama
---

# tiny-python-llama

A Llama model with {parameters} million parameters, pretrained on the standard library of Python
{python_version} and nothing else. With it `intel_ft` can be tried and tested end to end without a
download: it is small enough to ship, and trained enough that fine-tuning improves it and bad
quantization hurts it. It is not a useful code generator.

Written by `tools/pretrain_tiny.py`. The weights are bf16, the context is 1024 tokens, and the
tokenizer is a byte-level BPE of 4096 entries trained on the same files; a line break with its
indentation is one token, and each digit is a token.

| | |
|---|---:|
| training tokens | {train_tokens} |
| tokens seen | {tokens_seen} ({epochs} epochs) |
| validation tokens | {heldout_tokens} |
| validation perplexity | {heldout_perplexity} |
| validation perplexity of token frequencies alone | {unigram} |
| validation bits per byte | {bits} |
| trained in | {seconds} s on {device} |

## Data

Every `.py` file of the standard library, including its tests. Excluded: encoding tables,
`pydoc_data`, files above 400 kB, files that do not parse, site-packages. About 6 % of the modules,
chosen by the hash of their name, are the validation set and never trained on; they are the modules
of the validation set of `docstring-to-python`. The perplexity is that of the bf16 weights on these
files, in non-overlapping windows of 1024 tokens. The weights are those that had the lowest loss on
these files during training, so the perplexity is slightly too low.

## Samples

Temperature 0.7, top-p 0.95, seeds 0, 1 and 2; one sample for each seed, none discarded.

{samples}

## Limits

The model was not trained on instructions: the chat template (`### Instruction:` / `### Response:`)
is there for fine-tuning. It imitates the style of the standard library and can recite parts of it;
other code that it writes rarely runs. Names and strings of the library's authors occur in its
output.

## Licence

The weights are derived from text of the Python Software Foundation and its contributors under the
PSF licence version 2; a few modules have further notices, listed at the link above.
"""


def write_card(arguments: argparse.Namespace) -> None:
    """The `card` verb: write the model folder's README.md from its training.json."""
    record = json.loads((arguments.assets / "training.json").read_text(encoding="utf-8"))
    samples = [
        # Four backticks, because docstrings of the standard library contain fences of three.
        f"````python\n{sample['prompt']}{sample['completion'].rstrip()}\n````"
        for sample in record["samples"]
    ]
    text = CARD.format(
        parameters=f"{record['parameters'] / 1e6:.1f}",
        python_version=record["python_version"],
        train_tokens=f"{record['train_tokens']:,}",
        tokens_seen=f"{record['tokens_seen']:,}",
        epochs=record["epochs"],
        heldout_tokens=f"{record['heldout_tokens']:,}",
        heldout_perplexity=f"{record['heldout_perplexity']:.2f}",
        unigram=f"{record['unigram_heldout_perplexity']:.1f}",
        bits=f"{record['heldout_bits_per_byte']:.3f}",
        seconds=f"{record['seconds']:.0f}",
        device=record["device"],
        samples="\n\n".join(samples),
    )
    (arguments.assets / "README.md").write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the arguments and run one verb."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(required=True)

    verb = verbs.add_parser("corpus", help="train the tokenizer, encode the standard library")
    verb.set_defaults(run=make_corpus)
    verb.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    verb.add_argument("--assets", type=Path, default=MODEL, help="folder for the tokenizer")

    verb = verbs.add_parser("train", help="train a model on a corpus")
    verb.set_defaults(run=train)
    verb.add_argument("--corpus", type=Path, required=True)
    verb.add_argument("--output", type=Path, required=True, help="model folder to write")
    verb.add_argument("--assets", type=Path, default=MODEL, help="folder of the tokenizer")
    verb.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    verb.add_argument("--tokens", type=int, default=110_000_000)
    verb.add_argument(
        "--minutes", type=float, help="stop after this time, with the learning rate decayed"
    )
    verb.add_argument("--batch-tokens", type=int, help="default: 65536 on a GPU, 8192 on a CPU")
    verb.add_argument("--learning-rate", type=float, default=4e-3)
    verb.add_argument("--weight-decay", type=float, default=0.6)
    verb.add_argument("--eval-every", type=int, help="steps between evaluations")
    verb.add_argument(
        "--eval-tokens",
        type=int,
        help="validation tokens during training; the final evaluation uses all",
    )
    verb.add_argument("--device", default="auto")
    verb.add_argument("--no-compile", action="store_true", help="do not use torch.compile (CUDA)")
    verb.add_argument("--seed", type=int, default=0)

    verb = verbs.add_parser("card", help="write the model card from training.json")
    verb.set_defaults(run=write_card)
    verb.add_argument("--assets", type=Path, default=MODEL, help="the model folder")

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
