"""Training data from a teacher: mined negatives and scores."""
