"""What this machine and these libraries really do: measured, with the command that repeats it."""
