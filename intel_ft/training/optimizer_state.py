"""The optimizer's name and state, in one format for CPU and GPU.

On a GPU a paged AdamW is bitsandbytes', which names the same two moments differently. Checkpoints
use torch's names, so that a run can resume on the other kind of machine.
"""

from typing import Any

import torch

_TORCH_NAMES = {"state1": "exp_avg", "state2": "exp_avg_sq"}
_NAMES = {torch: bitsandbytes for bitsandbytes, torch in _TORCH_NAMES.items()}

State = dict[str, Any]


def optimizer_name(chosen: str, device: torch.device) -> str:
    """Transformers' name for `train.optimizer`; on a CPU, paged AdamW is torch's fused AdamW."""
    on_cpu = device.type == "cpu"
    return "adamw_torch_fused" if on_cpu and chosen == "paged_adamw_32bit" else chosen


def portable(state: State) -> State:
    """An optimizer's state under torch's names.

    bitsandbytes' step is not a tensor, and its moments are in a nested dictionary.
    """
    weights = {}
    for index, of_one in state["state"].items():
        flat: State = {}
        for name, value in of_one.items():
            flat |= value if isinstance(value, dict) else {name: value}
        weights[index] = {_TORCH_NAMES.get(n, n): _as_tensor(value) for n, value in flat.items()}
    return {**state, "state": weights}


def fitted(saved: State, current: State, *, paged: bool) -> State:
    """The saved state as the optimizer with state `current` (bitsandbytes' if `paged`) takes it.

    Each group keeps the settings that the optimizer that saved the state does not have.
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
