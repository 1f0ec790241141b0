"""`python -m intel_ft`: the command line, for launchers that start a Python module."""

from intel_ft.cli.main import main

main()
