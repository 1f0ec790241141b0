"""The command line, one module per verb that parses, calls and prints; start at main.py."""
