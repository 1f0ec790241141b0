"""A training run, from config to adapter. Start reading at run.py; the step is in step.py."""
