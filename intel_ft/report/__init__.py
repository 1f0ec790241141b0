"""One HTML page of what a run did. Start at page.py."""
