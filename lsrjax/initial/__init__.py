"""Initial weights and tokenizers of the student: warm starts, fits to data."""
