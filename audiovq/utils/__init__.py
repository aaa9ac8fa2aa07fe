"""What every part needs: progress, signals, chunks, micro-batches, files."""
