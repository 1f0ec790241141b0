"""`python -m intel_ft`, the command line for launchers that are given a program, not a name."""

from intel_ft.cli.main import main

main()
