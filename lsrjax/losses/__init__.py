"""Losses over scores, regularizers over views, and their weights."""
