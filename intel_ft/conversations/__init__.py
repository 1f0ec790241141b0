"""Conversations: what the rows of published datasets mean. Start at from_rows.py."""
