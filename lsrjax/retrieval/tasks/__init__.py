"""Benchmarks: corpora, queries and judgements in the layouts that they come in."""
