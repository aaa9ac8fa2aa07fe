"""Folder ↔ model: load, locate, validate, export, share."""
