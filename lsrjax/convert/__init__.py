"""Models of other programs, read and written; the export targets."""
