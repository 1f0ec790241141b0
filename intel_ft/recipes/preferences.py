"""Translates preference training (DPO and its relatives) and reward models of the peers.

Called first by each trainer's module, because it decides what the other keys mean. Names and
defaults: https://docs.axolotl.ai/docs/rlhf.html, LLaMA-Factory's finetuning_args (RLHFArguments),
https://huggingface.co/docs/trl/dpo_trainer, kto_trainer, orpo_trainer, cpo_trainer.
"""

import re
from collections.abc import Mapping

from intel_ft.config_method import OF_LOSSES
from intel_ft.errors import UserError
from intel_ft.recipes import values
from intel_ft.recipes.translation import Translation, is_off

_LLAMA_FACTORY = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
_AXOLOTL = ("dpo", "ipo", "orpo", "simpo", "kto")
_TRL = {"sigmoid": "dpo", "ipo": "ipo", "simpo": "simpo", "kto": "kto"}
_TRL_KINDS = ("dpo", "kto", "orpo", "cpo")
_TRL_KEYS = {
    "dpo": ("precompute_ref_log_probs", "rpo_alpha", "label_smoothing", "sync_ref_model"),
    "kto": ("desirable_weight", "undesirable_weight"),
    "cpo": ("cpo_alpha", "simpo_gamma"),
}
"""Keys that only one of TRL's preference trainers has."""

_NEEDED_NOWHERE = {
    "precompute_ref_*": "reference log-probabilities are always computed before training",
    "dpo_use_logits_to_keep": "logits are computed at supervised tokens only",
    "use_logits_to_keep": "logits are computed at supervised tokens only",
    "disable_dropout": "method.dropout sets the adapter's dropout",
    "is_encoder_decoder": "models are decoders",
    "dataset_num_proc": "the tokenizer uses all cores",
    "ref_adapter_name": "the reference is the model before its first step",
    "model_adapter_name": "there is one adapter",
    "force_use_ref_model": "the reference is the model before its first step",
    "precompute_ref_batch_size": "answers are packed into rows",
}


def is_preference(t: Translation) -> bool:
    """Whether the file has been recognized as training on compared answers."""
    return t.value_of("method.name") in ("preference", "reward")


def axolotl(t: Translation) -> None:
    """Translate `rl` and its keys, and `reward_model`."""
    kind = t.left.get("rl")
    if is_off(kind) and t.left.get("reward_model") is True:
        _reward(t, "reward_model")
        one = "a reward model is a classifier with one score"
        t.take_not_needed({"num_labels": one, "model_type": one})
        return
    if is_off(kind):
        return
    if kind not in _AXOLOTL:
        supported = ", ".join(_AXOLOTL)
        raise UserError(f"{t.origin}: rl: {kind}: only {supported} and fine-tuning are supported")
    loss = str(t.take("rl"))
    _set(t, loss, f"rl: {loss}")
    weight = "orpo_alpha" if loss == "orpo" else "rl_beta"
    t.convert(weight, "method.beta", values.number, 0.1 if loss != "simpo" else 2.0)
    _convert(
        t,
        {
            "dpo_label_smoothing": "method.label_smoothing",
            "rpo_alpha": "method.sft_weight",
            "cpo_alpha": "method.sft_weight",
            "simpo_gamma": "method.gamma",
            "kto_desirable_weight": "method.desirable_weight",
            "kto_undesirable_weight": "method.undesirable_weight",
        },
    )
    if loss == "simpo" and t.value_of("method.gamma") is None:
        t.put("method.gamma", 0.5, f"{t.dialect}'s default")
    t.take_not_needed(_NEEDED_NOWHERE)


def llama_factory(t: Translation) -> None:
    """Translate the stages dpo, kto and rm."""
    stage = t.left.get("stage")
    if stage == "rm":
        _reward(t, "stage")
        return
    if stage not in ("dpo", "kto"):
        return
    t.take("stage")
    name = str(t.take("pref_loss") or "sigmoid") if stage == "dpo" else "kto"
    if stage == "dpo" and name not in _LLAMA_FACTORY:
        supported = ", ".join(_LLAMA_FACTORY)
        raise UserError(f"{t.origin}: pref_loss: {name}: supported are {supported}")
    loss = _LLAMA_FACTORY.get(name, name)
    _set(t, loss, f"stage: {stage}" + (f", pref_loss: {name}" if stage == "dpo" else ""))
    t.convert("pref_beta", "method.beta", values.number, 0.1)
    names = {
        "dpo_label_smoothing": "method.label_smoothing",
        "pref_ftx": "method.sft_weight",
        "kto_chosen_weight": "method.desirable_weight",
        "kto_rejected_weight": "method.undesirable_weight",
    }
    if loss != "dpo":  # LLaMA-Factory adds it to this loss and ipo's only
        names.pop("dpo_label_smoothing")
    _convert(t, names)
    if loss == "simpo":
        t.convert("simpo_gamma", "method.gamma", values.number, 0.5)
    t.take_not_needed(dict.fromkeys(("simpo_gamma", "dpo_label_smoothing"), f"{loss} has none"))


def trl(t: Translation) -> bool:
    """Translate DPOConfig, KTOConfig, ORPOConfig, CPOConfig and RewardConfig; whether it is one."""
    if _is_trl_reward(t):
        _reward(t, None)
        return True
    kind = _kind_of_trl(t)
    if kind is None:
        return False
    names = t.left.get("loss_type", "sigmoid")
    names = names if isinstance(names, list) else [names]
    t.left.pop("loss_type", None)
    weights = t.take("loss_weights")
    loss = kind
    if kind in ("dpo", "cpo") and (kind == "dpo" or names[0] == "simpo"):
        if names[0] not in _TRL or not set(names[1:]) <= {"sft"}:
            supported = "sigmoid, ipo, simpo, and sft as a second one"
            raise UserError(f"{t.origin}: loss_type: {names}: supported are {supported}")
        loss = _TRL[names[0]]
    _set(t, loss, f"{kind.upper()}Config, loss_type: {', '.join(map(str, names))}")
    t.convert("beta", "method.beta", values.number, 0.1)
    if names[1:] and kind == "dpo":
        parts = weights if isinstance(weights, list) and len(weights) == 2 else [1.0, 1.0]
        t.put("method.sft_weight", float(parts[1]) / float(parts[0]), "loss_weights")
    elif weights is not None:
        t.cannot_carry("loss_weights", weights, "one loss has weight 1")
    if kind == "dpo" and (smoothing := t.take("label_smoothing")) is not None:
        reason = f"DPOTrainer 1 does not use it with {names[0]}: set method.label_smoothing for it"
        t.cannot_carry("label_smoothing", smoothing, reason)
    own = {
        "label_smoothing": "method.label_smoothing",
        "rpo_alpha": "method.sft_weight",
        "desirable_weight": "method.desirable_weight",
        "undesirable_weight": "method.undesirable_weight",
    }
    _convert(t, own)
    if kind == "cpo":
        t.convert("cpo_alpha", "method.sft_weight", values.number, 1.0)
    if loss == "simpo":
        t.convert("simpo_gamma", "method.gamma", values.number, 0.5)
    for key in ("max_prompt_length", "max_completion_length"):
        if (value := t.take(key)) is not None:
            t.cannot_carry(key, value, "only whole examples have a maximum: data.max_length")
    t.take_not_needed(_NEEDED_NOWHERE | {"simpo_gamma": f"{loss} has none"})
    return True


def _kind_of_trl(t: Translation) -> str | None:
    for kind in _TRL_KINDS:
        group = f"{kind}_config."
        if any(key.startswith(group) for key in t.left):
            t.left = {key.removeprefix(group): value for key, value in t.left.items()}
            return kind
    for kind, keys in _TRL_KEYS.items():
        if any(key in t.left and not is_off(t.left[key]) for key in keys):
            return kind
    losses = t.left.get("loss_type")
    first = losses[0] if isinstance(losses, list) and losses else losses
    if first in ("sigmoid", "ipo"):
        return "dpo"
    if first == "simpo":
        return "cpo"
    if "beta" not in t.left or any(key in t.left for key in ("num_generations", "use_vllm")):
        return None
    words = re.split(r"[^a-z]+", str(t.left.get("output_dir", "")).lower())
    kind = next((kind for kind in _TRL_KINDS if kind in words), "dpo")
    t.not_carried_over.append(
        f"beta: DPOConfig, KTOConfig, ORPOConfig and CPOConfig have it, and the file does not say"
        f" which it is: {kind} is assumed: check method.loss"
    )
    return kind


def _is_trl_reward(t: Translation) -> bool:
    group = "reward_config."
    if any(key.startswith(group) for key in t.left):
        t.left = {key.removeprefix(group): value for key, value in t.left.items()}
        return True
    if t.left.get("lora_task_type") == "SEQ_CLS":  # ModelConfig's, for `trl reward` alone
        return True
    return not is_off(t.left.get("center_rewards_coefficient"))


def _reward(t: Translation, key: str | None) -> None:
    """A reward model, as this key of the file says; None: its other keys do."""
    value = "RewardConfig" if key is None else f"{key}: {t.take(key)}"
    t.put("method.name", "reward", value)
    if not is_off(center := t.take("center_rewards_coefficient")):
        reason = "the loss is that of the differences alone"
        t.cannot_carry("center_rewards_coefficient", center, reason)
    t.take_not_needed(_NEEDED_NOWHERE)


def finish(t: Translation) -> None:
    """Take back what the rest of a translation set and preference training does not have."""
    data = t.config.get("data", {})
    if not is_preference(t):
        return
    for key, why in (
        ("format", "the columns chosen and rejected, or label, determine it"),
        ("loss_on", "answers are compared, and prompts are not trained on"),
    ):
        if data.pop(key, None) is not None:
            t.not_needed += [f"{old}: {why}" for old in _unmapped(t, f"data.{key}")]
    if data.get("on_long") == "truncate":
        for old in _unmapped(t, "data.on_long"):
            t.put("data.on_long", "drop", old, "a shortened answer is not the judged one")


def _unmapped(t: Translation, key: str) -> list[str]:
    """Take back the lines that map something to our `key`; returns what was mapped."""
    lines = [line for line in t.mapped if f" -> {key}: " in line]
    t.mapped = [line for line in t.mapped if line not in lines]
    return [line.partition(" -> ")[0] for line in lines]


def _set(t: Translation, loss: str, old: str) -> None:
    t.put("method.name", "preference", old)
    t.put("method.loss", loss, old)


def _convert(t: Translation, names: Mapping[str, str]) -> None:
    """Translate the keys that this loss has; the others are listed."""
    loss = t.value_of("method.loss")
    for old, new in names.items():
        value = t.read(old, values.number)
        if value is None or (value == 0 and new != "method.sft_weight"):
            continue
        if problem := _why_not(new.partition(".")[2], str(loss)):
            t.cannot_carry(old, value, problem)
        else:
            t.put(new, value, f"{old}: {value}")


def _why_not(key: str, loss: str) -> str | None:
    losses = OF_LOSSES[key]
    return None if loss in losses else f"{loss} has none ({', '.join(losses)} do)"
