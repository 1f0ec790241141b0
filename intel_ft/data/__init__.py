"""Data: training and validation sets of token ids with a loss mask. Start at prepare.py."""
