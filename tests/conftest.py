"""Shared by every folder of tests; its presence puts tests/ on the path, where harness.py is."""

from hypothesis import settings

# A shared machine makes single examples slow; how long a test may take is pytest-timeout's to say.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
