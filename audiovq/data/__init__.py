"""Everything that touches audio or codes on disk."""
