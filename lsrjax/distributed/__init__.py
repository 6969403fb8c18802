"""Meshes, processes, preemption and the watchdog."""
