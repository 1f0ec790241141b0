"""LoRA fine-tuning on Xeon clusters and export to OpenVINO, from one YAML file."""

__version__ = "0.1.0"
