"""Metrics of reconstructions and generated pieces."""
