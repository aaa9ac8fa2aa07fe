"""The listening report: one HTML file for a run or for generated pieces, and the pictures in it."""
