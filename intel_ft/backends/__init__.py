"""Device, dtype and threads of a run on each kind of hardware. Start at choice.py."""
