"""Meshes, processes, SLURM, preemption, the watchdog."""
