"""Trackers: programs that keep and show the numbers of runs; `table.TRACKERS`."""
