"""Evaluate, generate and chat, with a model here or a server. Start at engines.py."""
