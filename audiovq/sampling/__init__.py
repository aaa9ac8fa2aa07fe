"""Priors → codes."""
