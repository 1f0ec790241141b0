"""The optimizer's name and state, alike on CPU and GPU; called from training.run and
training.checkpoint.

A paged AdamW is bitsandbytes' on a GPU, with names of its own for the same two moments. Checkpoints
have torch's names, so that a run goes on where the other kind of machine left it.
"""

from typing import Any

import torch

_TORCH_NAMES = {"state1": "exp_avg", "state2": "exp_avg_sq"}
_NAMES = {torch: bitsandbytes for bitsandbytes, torch in _TORCH_NAMES.items()}

State = dict[str, Any]


def optimizer_name(chosen: str, device: torch.device) -> str:
    """What Transformers calls the optimizer for `train.optimizer`. A CPU has nothing to page to."""
    on_cpu = device.type == "cpu"
    return "adamw_torch_fused" if on_cpu and chosen == "paged_adamw_32bit" else chosen


def portable(state: State) -> State:
    """An optimizer's state under torch's names. bitsandbytes' step is no tensor, and its moments
    are in a dictionary of their own.
    """
    weights = {}
    for index, of_one in state["state"].items():
        flat: State = {}
        for name, value in of_one.items():
            flat |= value if isinstance(value, dict) else {name: value}
        weights[index] = {_TORCH_NAMES.get(n, n): _as_tensor(value) for n, value in flat.items()}
    return {**state, "state": weights}


def fitted(saved: State, current: State, *, paged: bool) -> State:
    """A saved state for the optimizer whose state is `current`, bitsandbytes' if `paged`: each
    group keeps the settings that the other kind does not know.
    """
    weights = saved["state"]
    if paged:
        weights = {
            index: {
                _NAMES.get(name, name): int(value) if name == "step" else value
                for name, value in of_one.items()
            }
            for index, of_one in weights.items()
        }
    groups = [
        {name: before.get(name, value) for name, value in now.items()}
        for before, now in zip(saved["param_groups"], current["param_groups"], strict=True)
    ]
    return {**saved, "state": weights, "param_groups": groups}


def _as_tensor(value: Any) -> Any:
    return torch.tensor(float(value)) if isinstance(value, int) else value
