"""Shipped recipes, and configs of other trainers translated to ours. Start at importer.py."""
