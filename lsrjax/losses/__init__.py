"""Losses over scores, regularizers over views, their weights."""
