"""How a run is carried out: the loop, ensembles, records on disk, devices, memory and threads."""
