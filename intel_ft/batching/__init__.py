"""Examples -> the plan: which rank trains on what, packed how, in which step."""
