"""Several processes: collectives, launching, random numbers that do not depend on the number of ranks."""
