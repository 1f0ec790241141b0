"""Makes a small Mixtral of the shipped model, to try what docs/moe.md describes on any machine.

    python tools/tiny_mixture.py mixtral --experts 4

Sparse upcycling (Komatsuzaki et al., 2022): each layer's experts are copies of its MLP with noise,
and its router is random. As a token's two experts are weighted to a sum of 1, the mixture predicts
about what the shipped model does, so that training and answers mean something. The tensors are
named as in published files; the tokenizer is the shipped one.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from intel_ft import assets
from intel_ft.assets import MODEL

NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def mixture_of(
    weights: dict[str, torch.Tensor], experts: int, noise: float
) -> dict[str, torch.Tensor]:
    """The weights of a Mixtral whose experts are copies of a Llama's MLPs.

    noise: standard deviation of what is added to each copy, relative to that of the weight.
    """
    random = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in weights.items():
        layer, is_mlp, matrix = name.partition(".mlp.")
        if not is_mlp:
            found[name] = weight
            continue
        mixture = f"{layer}.block_sparse_moe"
        spread = noise * weight.float().std()
        for expert in range(experts):
            copy = weight + spread * torch.randn(weight.shape, generator=random)
            key = f"{mixture}.experts.{expert}.{NAMES[matrix.removesuffix('.weight')]}.weight"
            found[key] = copy.to(weight.dtype)
        if matrix == "gate_proj.weight":
            width = weight.shape[1]
            router = torch.randn((experts, width), generator=random) * width**-0.5
            found[f"{mixture}.gate.weight"] = router.to(weight.dtype)
    return found


def main() -> None:
    """Write the model to a folder, which must not exist."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder that is made")
    parser.add_argument("--experts", type=int, default=4, help="experts of each layer, at least 2")
    parser.add_argument(
        "--noise", type=float, default=0.05, help="relative to each weight's spread"
    )
    arguments = parser.parse_args()
    if arguments.experts < 2:
        parser.error("--experts: at least 2, because a token takes two")
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists: name a new folder")
    source = Path(assets.resolve(MODEL))
    arguments.output.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, arguments.output / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": arguments.experts,
        "num_experts_per_tok": 2,
    }
    text = json.dumps(config, indent=2) + "\n"
    (arguments.output / "config.json").write_text(text, encoding="utf-8")
    weights = mixture_of(
        load_file(source / "model.safetensors"), arguments.experts, arguments.noise
    )
    save_file(weights, arguments.output / "model.safetensors", metadata={"format": "pt"})
    print(f"{sum(weight.numel() for weight in weights.values()):,} parameters")


if __name__ == "__main__":
    main()
