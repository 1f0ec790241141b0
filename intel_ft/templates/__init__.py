"""Templates: a conversation as text and token ids, and which of them are trained on.

Start with formats.py (a conversation), template.py (templates by name), chat_template.py (the
tokenizer's own) and encode.py (token ids with a loss mask).
"""
