"""A run, its stages, the loop and the step."""
