"""Process groups, oneCCL, binding, launching and failure detection. Start at rank_startup.py."""
