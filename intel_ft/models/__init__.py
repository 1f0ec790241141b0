"""Base model and adapter: loading, the choice of layers and weight layouts, loss, FLOPs.

Start with load.py (the base), adapter.py (LoRA) and loss.py (one packed row's loss). fast_path.py
decides how the layers compute: those of the package layers, over the weight layouts of
frozen_base.py.
"""
