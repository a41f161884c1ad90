"""What users call: the limit, networks, estimates with error bars, sweeps, and the trajectory that all return."""
