"""Which process of how many this is."""
