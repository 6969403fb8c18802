"""Encoders: their specs, and the modules that compute hidden states."""
