"""A model that answers, by torch or by OpenVINO. Start at language_model.py."""
