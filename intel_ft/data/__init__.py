"""Data: source -> rows -> conversations -> token ids with a loss mask. Start at prepare.py."""
