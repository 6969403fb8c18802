"""A run, its stages, the loop, the step; plans, trackers, results."""
