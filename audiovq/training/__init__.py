"""The training loop and its stages; the only users of accelerate."""
