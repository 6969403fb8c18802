"""Encoding, search, evaluation, BM25, mining, teacher scores."""
