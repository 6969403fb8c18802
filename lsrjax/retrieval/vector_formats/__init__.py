"""Files of vectors: formats to write, and the reading of our own."""
