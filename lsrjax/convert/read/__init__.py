"""Reads models that other programs saved."""
