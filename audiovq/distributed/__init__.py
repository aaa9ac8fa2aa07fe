"""Several processes: collectives, random numbers that do not depend on ranks, launching."""
