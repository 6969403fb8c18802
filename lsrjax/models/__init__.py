"""Encoders, heads, and the retriever that joins them."""
