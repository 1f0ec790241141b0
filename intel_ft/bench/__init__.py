"""How fast the product is, measured against peers and limits. Start at train.py."""
