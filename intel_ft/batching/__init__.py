"""Examples -> the plan: which rank trains on which examples, packed into which rows, in which step.

Start with plan.py. share.py splits and packs; row.py builds a packed row's arrays. forest.py and
families.py find what examples have in common from their start, so that a row computes it once.
"""
