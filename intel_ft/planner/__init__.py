"""What a run will need before anything is loaded: memory, time, energy. Start at plan.py."""
