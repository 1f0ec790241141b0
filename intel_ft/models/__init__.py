"""Base model and adapter: loading, packed attention, fused layers, frozen weights, loss, FLOPs.

Start with load.py (the base), adapter.py (LoRA) and loss.py (one packed row's loss). fast_path.py
decides how the layers compute: fused_decoder.py and lora_linear.py, over the weight layouts of
frozen_base.py.
"""
