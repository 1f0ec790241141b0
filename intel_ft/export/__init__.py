"""Turning a finished run into a model that ships: merged weights and OpenVINO IR."""
