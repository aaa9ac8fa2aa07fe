"""Live → sound card, pipe or file, with controls over OSC and MIDI."""
