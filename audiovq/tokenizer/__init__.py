"""Pure networks, waveform ↔ codes."""
