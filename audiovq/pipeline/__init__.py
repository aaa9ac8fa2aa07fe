"""The work behind the commands: train a run, sample to files, check this machine."""
