"""Publishing on the Hugging Face Hub: what belongs there, its card, and the upload."""
