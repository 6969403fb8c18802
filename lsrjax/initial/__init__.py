"""The student before its first step: warm starts, fitting to data."""
