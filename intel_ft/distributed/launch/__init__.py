"""Starting a run on several hosts and ranks. Start at launcher.py."""
