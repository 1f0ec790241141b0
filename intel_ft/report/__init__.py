"""The HTML report of what a run did. Start at page.py."""
