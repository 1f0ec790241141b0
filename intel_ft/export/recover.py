"""Recover what int4 lost: tune scales, zero points and low-rank corrections, then round for good.

The weights learn from the unquantized model, by KL on the run's own training examples (never the
validation set), for a bounded number of steps and minutes. The result has the form of the int4 IR
that it started from. A recovery that was stopped or killed continues from its last saved step.
"""

import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intel_ft.artifacts.ir_weights import (
    CompressedTensor,
    dequantize,
    read_compressed,
    replace_weights,
)
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem, IntelFTError, Stopped, UserError
from intel_ft.files import whole_file
from intel_ft.plurals import rough_time
from intel_ft.quantization import Settings
from intel_ft.signals import StopSignal
from intel_ft.templates.examples import ExampleSet

logger = logging.getLogger(__name__)

SEED = 0
BATCH = 32  # examples per step
SAVE_SECONDS = 20
WHOLE = 2 * 10**8  # weights of 4 bits up to which the correction is a whole matrix
_RANK = 64
_CHUNK = 2**28  # logits that a GPU computes at once
_POSITIONS = 1024  # that a CPU computes at once, with padding
_RATES = {"log_scale": 1, "zero": 20, "a": 0.1, "b": 0.1, "whole": 0.1}
"""Learning rates relative to `recover_rate`: zero points are whole numbers, weights small ones."""
_WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class Recovery:
    """How a candidate was tuned; KL in nats per token, in the first and last steps."""

    steps: int
    seconds: float
    tokens: int
    kl_start: float
    kl_end: float


def recover(
    model: Any, ir: Path, examples: ExampleSet, settings: Settings, state: Path
) -> Recovery:
    """Tune the 4-bit weights of the IR in the folder `ir`, in place, towards `model`.

    model: the unquantized model in torch, which is changed; examples: of the run's training set;
    state: the file from which a killed recovery continues. Raises UserError where nothing can be
    tuned, EnvironmentProblem where the GPU's memory is full, Stopped after SIGINT or SIGTERM once
    the state is saved, IntelFTError where the tuned IR does not hold the tuned weights.
    """
    import torch

    from intel_ft.export.fake_quantize import original, quantize_in_place

    torch.manual_seed(SEED)
    model.eval().requires_grad_(False)
    weights = read_compressed(ir)
    rank = _rank(settings, weights.values())
    trained = quantize_in_place(model, weights, rank)
    if not trained:
        raise UserError("--recover: this candidate has no 4-bit weights to tune")
    device = _device(model, trained)
    logger.info("%s", device)
    model.to(device.value)
    try:
        recovery = _tune(model, trained, examples, settings, state)
    except torch.OutOfMemoryError as error:
        raise EnvironmentProblem(
            "--recover: the GPU has too little memory for these examples: lower sample_tokens, or "
            'set CUDA_VISIBLE_DEVICES="" to use the CPU'
        ) from error
    model.to("cpu")
    stored = {name: layer.stored(original(model, name)) for name, layer in trained.items()}
    replace_weights(ir, stored)
    written = read_compressed(ir)
    for name, layer in trained.items():
        with torch.no_grad():
            expected = layer.values(original(model, name)).numpy()
        if not np.array_equal(dequantize(written[name]), expected):
            raise IntelFTError(f"{ir}: {name} was not written with its tuned values")
    state.unlink(missing_ok=True)
    return recovery


def _rank(settings: Settings, weights: Iterable[CompressedTensor]) -> int:
    """The rank of the corrections, 0 for whole matrices, which large models have no memory for."""
    if settings.recover_rank is not None:
        return settings.recover_rank
    count = sum(one.shape[0] * one.shape[1] for one in weights if one.bits == 4)
    return 0 if count <= WHOLE else _RANK


def _device(model: Any, trained: dict[str, Any]) -> Decision:
    """The GPU that torch sees if the model and what is trained fit into it, else the CPU."""
    import torch

    from intel_ft.backends.choice import choose_by_name
    from intel_ft.backends.cpu import fastest_dtype
    from intel_ft.host import devices
    from intel_ft.host.cpu import GIB

    backend = choose_by_name("auto")
    if backend.value == "cpu":
        dtype, why = fastest_dtype()
        gemms = f"GEMMs in {'bf16' if dtype == torch.bfloat16 else 'float32'}: {why}"
        return Decision("recovery", "cpu", f"{backend.reason}; {gemms}")
    held = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    # The rounded weights and their gradients; gradients and two moments of what is trained.
    tuned = sum(part.nbytes for layer in trained.values() for part in layer.parameters())
    needed = 3 * held + 3 * tuned + 7 * _CHUNK * 4
    free = devices.available_bytes(torch.device("cuda", 0))
    sizes = f"{needed / GIB:.2g} GiB needed, {free / GIB:.1f} GiB free"
    if needed > free:
        return Decision("recovery", "cpu", f"{devices.gpu_name()} has too little memory: {sizes}")
    return Decision("recovery", "cuda", f"torch sees {devices.gpu_name()}: {sizes}")


def _tune(
    model: Any, trained: dict[str, Any], examples: ExampleSet, settings: Settings, state: Path
) -> Recovery:
    import torch

    from intel_ft.export.fake_quantize import original

    layers = torch.nn.ModuleDict({name.replace(".", "/"): part for name, part in trained.items()})
    rate = settings.recover_rate
    groups: dict[str, list[Any]] = {name: [] for name in _RATES}
    for name, parameter in layers.named_parameters():
        groups[name.rpartition(".")[2]].append(parameter.requires_grad_())
    optimizer = torch.optim.AdamW(
        [{"params": parts, "lr": rate * _RATES[kind]} for kind, parts in groups.items() if parts],
        weight_decay=0.0,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    step, before, tokens, losses = 0, 0.0, 0, []
    if state.is_file():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        layers.load_state_dict(saved["layers"])
        optimizer.load_state_dict(saved["optimizer"])
        step, before, tokens, losses = (saved[k] for k in ("step", "seconds", "tokens", "losses"))
        logger.info("recovery: continuing from step %d", step)
    start = saved_at = time.monotonic()
    limit = 60 * settings.recover_minutes
    with StopSignal() as stop:
        while step < settings.recover_steps:
            seconds = before + time.monotonic() - start
            progress = max(step / settings.recover_steps, seconds / limit)
            if progress >= 1:
                logger.info("recovery: stopped after %g minutes (recover_minutes)", limit / 60)
                break
            factor = min(1.0, (step + 1) / (_WARMUP * settings.recover_steps + 1))
            factor *= 0.5 * (1 + math.cos(math.pi * progress))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
            for name, layer in trained.items():
                layer.start_step(original(model, name))
            loss, count = _step(model, examples, _batch(examples, step), settings.sample_tokens)
            for name, layer in trained.items():
                layer.finish_step(original(model, name))
            optimizer.step()
            optimizer.zero_grad()
            step, tokens = step + 1, tokens + count
            losses.append(loss / count)
            seconds = before + time.monotonic() - start
            if step % 20 == 0:
                left = min(seconds / step * (settings.recover_steps - step), limit - seconds)
                logger.info(
                    "recovery: step %d of %d, KL %.5f, %s left",
                    *(step, settings.recover_steps, float(np.mean(losses[-20:]))),
                    rough_time(max(0, left)),
                )
            if stop.received is not None or time.monotonic() - saved_at > SAVE_SECONDS:
                values = {"step": step, "seconds": seconds, "tokens": tokens, "losses": losses}
                parts = {"layers": layers.state_dict(), "optimizer": optimizer.state_dict()}
                _save(state, values | parts)
                saved_at = time.monotonic()
            if stop.received is not None:
                raise Stopped(
                    stop.received,
                    f"{signal.Signals(stop.received).name}: saved the recovery after step {step} "
                    "and stopped: run the command again to continue",
                )
    few = max(1, len(losses) // 10)
    return Recovery(
        steps=step,
        seconds=before + time.monotonic() - start,
        tokens=tokens,
        kl_start=float(np.mean(losses[:few])) if losses else math.nan,
        kl_end=float(np.mean(losses[-few:])) if losses else math.nan,
    )


def _step(model: Any, examples: ExampleSet, indices: list[int], longest: int) -> tuple[float, int]:
    """Add the gradients of one batch; returns its summed KL and the number of tokens."""
    import torch

    from intel_ft.backends.cpu import fastest_dtype
    from intel_ft.export.fake_quantize import activate, divergence

    embedding = model.get_input_embeddings().weight
    rows = []
    for index in indices:
        tokens, supervised = (part[:longest] for part in examples[index])
        before = np.flatnonzero(supervised) - 1
        if len(before):
            rows.append((tokens, before))
    count = max(1, sum(len(at) for _, at in rows))
    total = torch.zeros((), device=embedding.device)
    on_cpu = embedding.device.type == "cpu"
    chunk = _POSITIONS if on_cpu else _CHUNK // len(embedding)
    bf16 = on_cpu and fastest_dtype()[0] == torch.bfloat16
    for together in _chunks(rows, chunk):
        ids, keep, chosen = (part.to(embedding.device) for part in _padded(together))
        inputs = {"input_ids": ids, "logits_to_keep": keep, "use_cache": False}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            activate(model, False)
            with torch.no_grad():
                teacher = model(**inputs).logits[chosen]
            activate(model, True)
            student = model(**inputs).logits[chosen]
        loss = divergence(teacher, student)
        torch.autograd.backward(loss / count)
        total += loss.detach()
    if not math.isfinite(total):
        raise IntelFTError("recovery: the KL is not finite: lower recover_rate")
    return float(total), count


_Row = tuple[Any, Any]  # tokens [length], and the positions whose logits are compared


def _chunks(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows that are computed together: at most `size` positions with padding, or one row."""
    chunk: list[_Row] = []
    longest = 0
    for row in sorted(rows, key=lambda row: len(row[0])):
        longest = max(longest, len(row[0]))
        if chunk and longest * (len(chunk) + 1) > size:
            yield chunk
            chunk, longest = [], len(row[0])
        chunk.append(row)
    if chunk:
        yield chunk


def _padded(rows: list[_Row]) -> tuple[Any, Any, Any]:
    """Ids [rows, length], positions with logits in any row, and which of them count [rows, kept].

    Padding follows a row's tokens, so that it changes no logits of theirs.
    """
    import torch

    ids = torch.zeros(len(rows), max(len(tokens) for tokens, _ in rows), dtype=torch.int64)
    counts = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (tokens, at) in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        counts[row, torch.from_numpy(at)] = True
    keep = counts.any(0).nonzero().flatten()
    return ids, keep, counts[:, keep]


def _batch(examples: ExampleSet, step: int) -> list[int]:
    """The examples of a step, which follow from its number alone."""
    size = min(BATCH, len(examples))
    a_pass = len(examples) // size
    order = np.random.default_rng((SEED, step // a_pass)).permutation(len(examples))
    at = step % a_pass * size
    return [int(index) for index in order[at : at + size]]


def _save(path: Path, values: dict[str, Any]) -> None:
    import torch

    with whole_file(path) as partial:
        torch.save(values, partial)
