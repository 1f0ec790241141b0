"""Publishing on the Hugging Face Hub: which files, the model card, the upload. Start at push.py."""
