"""How large a step is, how it warms up, and when a run saves and evaluates, in our terms; called
from the dialects.

Strategies are those of transformers.TrainingArguments, which Axolotl and LLaMA-Factory pass
through: https://huggingface.co/docs/transformers/main_classes/trainer
"""

from typing import Any

from intel_ft.recipes.translation import Translation, is_off
from intel_ft.recipes.values import number, whole

_EVAL = ("eval_strategy", "evaluation_strategy")


def batch(
    t: Translation, per_device: str, default: int, devices: int, packing: tuple[str, ...]
) -> None:
    """examples a device x accumulation x devices -> examples a step over all ranks.

    packing: the trainer's keys that make its samples rows of many examples; data.max_length must
    be known by now.
    """
    size, steps = t.read(per_device, whole), t.read("gradient_accumulation_steps", whole)
    size, steps = size or default, steps or 1
    old = f"{per_device}: {size} x gradient_accumulation_steps: {steps} x {devices} device(s)"
    note = "--devices says how many it ran on"
    t.put("train.global_batch_size", size * steps * devices, old, note)
    if packed := [key for key in packing if t.flag(key)]:
        length = t.got("data.max_length") or "data.max_length"
        t.cannot(
            " and ".join(packed),
            True,
            f"a sample is there a packed row of {length} tokens, here it is an example: multiply"
            f" train.global_batch_size by {length} / mean tokens of an example, which `intel-ft"
            " validate` prints (train_tokens / train_examples)",
        )


def warmup(t: Translation, default: float = 0.0) -> None:
    """A share of the steps; a number of steps becomes one where the steps are known."""
    steps, ratio = t.read("warmup_steps", number), t.read("warmup_ratio", number)
    if steps is not None and ratio is not None:  # a dump of all arguments has both
        if steps > 0 and ratio:
            t.cannot("warmup_ratio", ratio, "warmup_steps goes first, as in Transformers 4")
        else:
            t.off.append("warmup_ratio" if steps > 0 else "warmup_steps")
        steps, ratio = (steps, None) if steps > 0 else (None, ratio)
    total = t.got("train.max_steps")
    if ratio is not None:
        t.put("train.warmup_ratio", ratio, f"warmup_ratio: {ratio}")
    elif steps is None:
        t.put("train.warmup_ratio", default, f"{t.dialect}'s default")
    elif steps < 1:  # Transformers 5 takes a share here, too
        t.put("train.warmup_ratio", steps, f"warmup_steps: {steps}")
    elif total:
        value = round(min(steps / total, 1.0), 6)
        t.put("train.warmup_ratio", value, f"warmup_steps: {steps:g}", f"of {total} steps")
    else:
        t.cannot("warmup_steps", steps, "set train.warmup_ratio to it divided by the run's steps")


def evaluates(t: Translation) -> bool:
    """Whether a strategy of evaluation is named that is not "no"; nothing is taken."""
    return any(not is_off(found := t.left.get(key)) and found != "no" for key in _EVAL)


def checkpoints(t: Translation, save_every: int | None) -> None:
    """When to save and evaluate. data.eval and train.logging_steps must be known by now.

    save_every: the trainer's default of save_steps; None where it saves each epoch.
    """
    _saving(t, save_every)
    _evaluating(t)
    t.convert("save_total_limit", "train.keep_checkpoints", whole)


def _saving(t: Translation, save_every: int | None) -> None:
    strategy = _strategy(t, "save_strategy")
    by_steps = strategy in (None, "steps")
    t.convert("save_steps", "train.save_steps", whole, save_every if by_steps else None)
    if strategy == "steps":
        t.meaningless.append("save_strategy: steps: train.save_steps is in steps")
    elif strategy == "no":
        t.cannot("save_strategy", "no", "a run saves each train.save_steps, so that it can resume")
    elif strategy is not None:
        t.cannot("save_strategy", strategy, "train.save_steps is in steps")


def _evaluating(t: Translation) -> None:
    """Steps or epochs, which is what train.eval_steps: null means."""
    key = next((name for name in _EVAL if name in t.left), _EVAL[0])
    strategy, held_out = _strategy(t, key), t.got("data.eval") or t.got("data.eval_fraction")
    steps = t.take("eval_steps") if strategy == "epoch" else t.left.get("eval_steps")
    t.convert("eval_steps", "train.eval_steps", whole)
    if strategy == "no" and held_out:
        t.cannot(key, "no", "held-out data is evaluated on: drop data.eval or data.eval_fraction")
    elif strategy == "no":
        t.off.append(key)
    elif strategy in ("steps", "epoch") and not held_out:
        t.cannot(key, strategy, "name data.eval, or hold a share out with data.eval_fraction")
    elif strategy == "epoch":
        t.put("train.eval_steps", None, f"{key}: epoch", "after each epoch")
    elif strategy == "steps" and not steps and t.got("train.logging_steps"):
        note = "there as often as logging_steps where eval_steps is not given"
        t.put("train.eval_steps", t.got("train.logging_steps"), f"{key}: steps", note)
    elif strategy == "steps":
        t.meaningless.append(f"{key}: steps: train.eval_steps is in steps")
    elif strategy is not None:
        t.cannot(key, strategy, "train.eval_steps is in steps")
    if strategy == "epoch" and steps is not None:
        t.meaningless.append(f"eval_steps: {steps}: {key} is epoch")


def _strategy(t: Translation, key: str) -> Any:
    """steps, epoch or no, which YAML reads as false; None where it is absent or empty."""
    if t.left.get(key) is False:
        del t.left[key]
        return "no"
    return t.take(key)
