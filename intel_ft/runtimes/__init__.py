"""Run a model in torch or OpenVINO behind one interface. Start at language_model.py."""
