"""Checkpoints: find, check, read, convert and load weights."""
