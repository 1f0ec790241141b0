"""Merge an adapter and export a model to OpenVINO IR. Start at export.py."""
