"""Layers that replace a model's own, over frozen weights in several layouts.

Start with lora_linear.py (a linear layer with its adapter), fused_decoder.py (a whole decoder
layer) and experts.py (a mixture of experts).
"""
