"""Reads and writes models of other programs."""
