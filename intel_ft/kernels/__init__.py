"""The training step between its matrix products, compiled for this CPU when first used."""
