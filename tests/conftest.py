"""Shared by every folder of tests; its presence puts tests/ on the path, where harness.py is."""
