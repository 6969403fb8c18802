"""Encoding, search and evaluation."""
