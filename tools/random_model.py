"""Writes a Llama-shaped model with random bf16 weights, for measuring exports.

    python tools/random_model.py 7b /tmp/random-7b
    /usr/bin/time -v intel-ft export /tmp/random-7b -o /tmp/random-7b-int4 --format int4 --json

It holds one layer in memory at a time. The tokenizer is the shipped one, so texts use only its
token ids.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from intel_ft import assets

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "0.1b": (768, 2048, 12, 12, 12, 4096),
    "0.5b": (1280, 3456, 24, 20, 20, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "7b-slice": (4096, 11008, 4, 32, 32, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}


def main(shape: str, folder: Path) -> None:
    """Write the model of `shape` (a key of SHAPES) to `folder`, which must not exist."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    folder.mkdir(parents=True)
    source = Path(assets.resolve("tiny-python-llama"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    key_value = hidden // heads * kv_heads
    parts: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (vocabulary, hidden)}]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        parts.append(
            {
                f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
                f"{prefix}.self_attn.k_proj.weight": (key_value, hidden),
                f"{prefix}.self_attn.v_proj.weight": (key_value, hidden),
                f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
                f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
                f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
                f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
                f"{prefix}.input_layernorm.weight": (hidden,),
                f"{prefix}.post_attention_layernorm.weight": (hidden,),
            }
        )
    parts.append({"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)})
    index: dict[str, str] = {}
    torch.manual_seed(0)
    for number, tensors in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        values = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.randn(shape, dtype=torch.bfloat16).mul_(shape[-1] ** -0.5)
            for name, shape in tensors.items()
        }
        save_file(values, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(values, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="must not exist")
    options = parser.parse_args()
    main(options.shape, options.folder)
