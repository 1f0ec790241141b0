"""Base model and adapter, packed attention, loss and its cost in operations and memory."""
