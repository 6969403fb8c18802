"""Measures the parts that decide the speed of a run, on the machine at hand."""
