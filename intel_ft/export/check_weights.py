"""Weights that cannot be exported, named: not finite, or beyond what fp16 holds; called from
export.merge and export.convert.
"""

from pathlib import Path

from intel_ft.errors import UserError

FP16_MOST = 65504.0


def check_weights(folder: Path, *, fp16: bool) -> None:
    """Read every tensor of the model in `folder`, one at a time.

    Raises UserError naming the first that holds NaN or infinity or, with `fp16`, a magnitude above
    65504, which bf16 holds and fp16 does not. Pickled weights are not looked at.
    """
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or tensor.numel() == 0:
                    continue
                low, high = (float(end) for end in torch.aminmax(tensor))
                if not (abs(low) < float("inf") and abs(high) < float("inf")):
                    raise UserError(
                        f"{path}: {name} holds NaN or infinity: the model is broken, take another "
                        "checkpoint or download it again"
                    )
                if fp16 and max(-low, high) > FP16_MOST:
                    raise UserError(
                        f"{path}: {name} holds {max(-low, high):.3g}, beyond what fp16 holds "
                        "(65504), so OpenVINO cannot store it: this model cannot be exported"
                    )
