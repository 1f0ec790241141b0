"""Translates batch size, warmup, and when a run saves and evaluates.

Strategies are those of transformers.TrainingArguments, which Axolotl and LLaMA-Factory pass
through: https://huggingface.co/docs/transformers/main_classes/trainer
"""

import math
from collections.abc import Callable
from typing import Any

from intel_ft.config_sections import DataConfig, TrainConfig
from intel_ft.plurals import count_of
from intel_ft.recipes.translation import Translation, is_off
from intel_ft.recipes.values import number, positive_int

_EVAL = ("eval_strategy", "evaluation_strategy")


def batch(
    t: Translation, per_device: str, default: int, devices: int, packing: tuple[str, ...]
) -> None:
    """Set train.global_batch_size to batch size per device x accumulation steps x devices.

    packing: the trainer's keys that make each of its samples a packed row of many examples;
    data.max_length must be translated before.
    """
    size, steps = (
        t.read(per_device, positive_int),
        t.read("gradient_accumulation_steps", positive_int),
    )
    size, steps = size or default, steps or 1
    old = f"{per_device}: {size} x gradient_accumulation_steps: {steps} x {devices} device(s)"
    note = "set the number of devices with --devices"
    rows = size * steps * devices
    packed = " and ".join(key for key in packing if t.flag(key))
    length = t.value_of("data.max_length") or DataConfig.model_fields["max_length"].default
    if packed and t.measured is not None:
        mean = t.measured.mean_tokens
        examples = max(rows, round(rows * length / mean))
        t.put(
            "train.global_batch_size",
            examples,
            f"{packed}: true, {old}",
            f"the examples of {rows} packed rows of {length} tokens: {mean:.0f} tokens each, as"
            " measured on the data",
        )
        return
    t.put("train.global_batch_size", rows, old, note)
    if packed:
        t.cannot_carry(
            packed,
            True,
            f"{t.dialect} counts packed rows of {length} tokens, intel-ft counts examples: multiply"
            f" train.global_batch_size by {length} / (mean tokens per example), where the mean is"
            " train_tokens / train_examples as printed by `intel-ft validate`",
        )


def steps_per_epoch(t: Translation) -> int | None:
    """Steps of an epoch, once train.global_batch_size is set; None where the data is not here."""
    size = t.value_of("train.global_batch_size")
    if t.measured is None or not size:
        return None
    held = 0 if t.value_of("data.eval") else t.value_of("data.eval_fraction") or 0
    return math.ceil(t.measured.examples * (1 - float(held)) / int(size))


def total_steps(t: Translation) -> int | None:
    """Steps of the run; None where they depend on data that is not here."""
    if steps := t.value_of("train.max_steps"):
        return int(steps)
    epoch = steps_per_epoch(t)
    return None if epoch is None else math.ceil(epoch * (t.value_of("train.epochs") or 1.0))


def max_steps(t: Translation) -> None:
    """TrainingArguments.max_steps, where -1 means that the epochs determine the number."""
    if t.left.get("max_steps") in (-1, 0):
        t.off.append("max_steps")
        del t.left["max_steps"]
    t.convert("max_steps", "train.max_steps", positive_int)


def warmup(t: Translation, default: float = 0.0) -> None:
    """Translate warmup to a share of the steps; a number of steps needs max_steps for that."""
    steps, ratio = t.read("warmup_steps", number), t.read("warmup_ratio", number)
    if steps is not None and ratio is not None:  # a dump of all arguments has both
        if steps > 0 and ratio:
            t.cannot_carry(
                "warmup_ratio", ratio, "warmup_steps takes precedence, as in Transformers 4"
            )
        else:
            t.off.append("warmup_ratio" if steps > 0 else "warmup_steps")
        steps, ratio = (steps, None) if steps > 0 else (None, ratio)
    total = total_steps(t)
    if ratio is not None:
        t.put("train.warmup_ratio", ratio, f"warmup_ratio: {ratio}")
    elif steps is None:
        t.put("train.warmup_ratio", default, f"{t.dialect}'s default")
    elif steps < 1:  # Transformers 5 accepts a share here, too
        t.put("train.warmup_ratio", steps, f"warmup_steps: {steps}")
    elif total:
        value = round(min(steps / total, 1.0), 6)
        t.put(
            "train.warmup_ratio", value, f"warmup_steps: {steps:g}", f"of {count_of(total, 'step')}"
        )
    else:
        t.cannot_carry(
            "warmup_steps", steps, "set train.warmup_ratio to warmup_steps / (steps of the run)"
        )


def evaluates(t: Translation) -> bool:
    """Whether the file sets an evaluation strategy other than "no"; takes no key."""
    return any(not is_off(value := t.left.get(key)) and value != "no" for key in _EVAL)


def checkpoints(t: Translation, save_every: int | None) -> None:
    """Translate when to save and evaluate, after data.eval and train.logging_steps.

    save_every: the trainer's default for save_steps; None if it saves after each epoch.
    """
    saves = _saving(t, save_every)
    _evaluating(t)
    _per_epoch(t)
    _result(t)
    if t.left.get("save_total_limit") == 0:  # Transformers then keeps the last one or two
        del t.left["save_total_limit"]
    default = {"Axolotl": 4}.get(t.dialect)
    kept = t.convert("save_total_limit", "train.keep_checkpoints", positive_int, default)
    if kept is None and saves:
        kept = TrainConfig().keep_checkpoints
        t.not_carried_over.append(
            f"save_total_limit is not set: {t.dialect} keeps every checkpoint, intel-ft the last"
            f" {kept}: set train.keep_checkpoints"
        )


def _steps_of(t: Translation) -> Callable[[Any], int]:
    """A conversion of a number of steps, or of a share below 1 of the run's steps."""

    def steps(value: Any) -> int:
        share = number(value)
        if not 0 < share < 1:
            return positive_int(value)
        total = total_steps(t)
        if total is None:
            raise ValueError("a share of the run's steps: set it to a number of steps")
        return max(1, math.ceil(share * total))

    return steps


def _saving(t: Translation, save_every: int | None) -> bool:
    """Translate when to save; whether the other trainer saves checkpoints at all."""
    strategy = _strategy(t, "save_strategy")
    by_steps = strategy in (None, "steps")
    default = save_every if by_steps else None
    t.convert("save_steps", "train.save_steps", _steps_of(t), default)
    if strategy == "steps":
        t.not_needed.append("save_strategy: steps: train.save_steps always counts steps")
    elif strategy == "no":
        t.cannot_carry(
            "save_strategy",
            "no",
            "a run always saves every train.save_steps, so that it can be resumed",
        )
    elif strategy == "epoch" and (epoch := steps_per_epoch(t)):
        t.put("train.save_steps", epoch, "save_strategy: epoch", "steps per epoch of this data")
    elif strategy is not None:
        t.cannot_carry("save_strategy", strategy, "set train.save_steps to a number of steps")
    return bool(strategy != "no")


def _evaluating(t: Translation) -> None:
    """Translate evaluation every N steps, or every epoch (train.eval_steps: null)."""
    key = next((name for name in _EVAL if name in t.left), _EVAL[0])
    strategy, validates = (
        _strategy(t, key),
        t.value_of("data.eval") or t.value_of("data.eval_fraction"),
    )
    steps = t.take("eval_steps") if strategy == "epoch" else t.left.get("eval_steps")
    t.convert("eval_steps", "train.eval_steps", _steps_of(t))
    if strategy == "no" and validates:
        t.cannot_carry(key, "no", "to skip evaluation, remove data.eval or data.eval_fraction")
    elif strategy == "no":
        t.off.append(key)
    elif strategy in ("steps", "epoch") and not validates:
        t.cannot_carry(key, strategy, "set data.eval or data.eval_fraction")
    elif strategy == "epoch":
        t.put("train.eval_steps", None, f"{key}: epoch", "after each epoch")
    elif strategy == "steps" and not steps and t.value_of("train.logging_steps"):
        note = f"{t.dialect} evaluates every logging_steps if eval_steps is not set"
        t.put("train.eval_steps", t.value_of("train.logging_steps"), f"{key}: steps", note)
    elif strategy == "steps":
        t.not_needed.append(f"{key}: steps: train.eval_steps always counts steps")
    elif strategy is not None:
        t.cannot_carry(key, strategy, "set train.eval_steps to a number of steps")
    if strategy == "epoch" and steps is not None:
        t.not_needed.append(f"eval_steps: {steps}: not used, because {key} is epoch")


def _per_epoch(t: Translation) -> None:
    """Translate Axolotl's evaluations and checkpoints per epoch: shares of the run's steps."""
    evals, saves = t.read("evals_per_epoch", number), t.read("saves_per_epoch", number)
    total, epochs = total_steps(t), t.value_of("train.epochs") or 1.0
    if evals and not (t.value_of("data.eval") or t.value_of("data.eval_fraction")):
        t.not_needed.append(f"evals_per_epoch: {evals:g}: there is no validation data")
    elif evals == 1:
        t.put("train.eval_steps", None, "evals_per_epoch: 1", "after each epoch")
    else:
        _share(t, "evals_per_epoch", evals, "train.eval_steps", total, epochs)
    _share(t, "saves_per_epoch", saves, "train.save_steps", total, epochs)


def _result(t: Translation) -> None:
    """List that the result has the best weights, where the other trainer saves the last ones."""
    chosen = t.left.get("load_best_model_at_end")
    best = t.dialect == "Axolotl" if chosen is None else not is_off(chosen)
    if best or not (t.value_of("data.eval") or t.value_of("data.eval_fraction")):
        return
    t.take("load_best_model_at_end")
    t.not_carried_over.append(
        f"load_best_model_at_end is not on: {t.dialect} saves the last weights, intel-ft those of"
        " the best evaluation; the last ones are in the newest checkpoint"
    )


def _share(
    t: Translation, old: str, count: float | None, new: str, total: int | None, epochs: float
) -> None:
    """Set `new` so that it happens `count` times an epoch; 0 is off."""
    if count == 0:
        t.off.append(old)
    elif count is not None and total:
        steps = max(1, math.ceil(total / (count * epochs)))
        t.put(
            new,
            steps,
            f"{old}: {count:g}",
            f"of {count_of(total, 'step')} in {count_of(epochs, 'epoch')}",
        )
    elif count is not None:
        t.cannot_carry(old, count, f"set {new} to a number of steps")


def _strategy(t: Translation, key: str) -> Any:
    """Take a strategy (steps, epoch or no, which YAML reads as false); None if absent or empty."""
    if t.left.get(key) is False:
        del t.left[key]
        return "no"
    return t.take(key)
