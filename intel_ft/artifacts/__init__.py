"""What a folder holds: a model, an adapter or an IR, and its origin. Start at resolve.py."""
