"""Figures and pictures of what was reconstructed and generated."""
