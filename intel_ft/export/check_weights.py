"""Find weights that cannot be exported: NaN, infinity, or beyond the fp16 range."""

from pathlib import Path

from intel_ft.errors import UserError

FP16_MAX = 65504.0


def check_weights(folder: Path, *, fp16: bool) -> None:
    """Read every tensor of the model in `folder`, one at a time.

    Raises UserError naming the first tensor that contains NaN or infinity or, with `fp16`, a
    magnitude above 65504, which bf16 can store and fp16 cannot. Pickled weights are not read.
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
                        f"{path}: {name} contains NaN or infinity: the model is broken, use "
                        "another checkpoint or download it again"
                    )
                if fp16 and max(-low, high) > FP16_MAX:
                    raise UserError(
                        f"{path}: {name} has a magnitude of {max(-low, high):.3g}, beyond the fp16 "
                        "range (65504): OpenVINO cannot store it, so this model cannot be exported"
                    )
