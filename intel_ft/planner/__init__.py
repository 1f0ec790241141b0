"""`intel-ft plan`: predicts memory, time and energy of a run. Start reading at plan.py."""
