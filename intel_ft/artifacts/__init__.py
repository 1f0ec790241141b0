"""What a folder holds: a model, an adapter or an IR, and where it came from. Start at resolve.py."""
