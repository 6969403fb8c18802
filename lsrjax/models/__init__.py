"""Encoders, heads and the views that heads return."""
