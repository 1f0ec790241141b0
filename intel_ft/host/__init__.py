"""What this machine is: CPU, memory, topology, limits, launcher variables. Start at topology.py."""
