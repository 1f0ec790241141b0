"""The run: the Trainer that walks the plan, its checkpoints, records and signals."""
