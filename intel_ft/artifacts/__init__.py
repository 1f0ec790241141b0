"""Model folders: what a folder contains and where it came from. Start at resolve.py."""
