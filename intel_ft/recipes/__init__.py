"""Where a run's YAML comes from: shipped recipes, or another trainer's config translated."""
