"""The student before its first step: warm starts, and what is fitted to data."""
