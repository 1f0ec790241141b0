"""Benchmarks of training, data preparation, GEMMs and collectives. Start reading at train.py."""
