"""The report of a run, or of several: one HTML file."""
