"""The commands. Each parses, calls the layers below and prints; torch is loaded only by those that need it."""

from audiovq.cli import desk, judge, learn, music, share, studio  # each adds its commands
from audiovq.cli.group import main

__all__ = ["desk", "judge", "learn", "main", "music", "share", "studio"]
