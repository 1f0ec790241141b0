"""Starting a run on many hosts and ranks: read `run.py` first; called from cli.launch."""
