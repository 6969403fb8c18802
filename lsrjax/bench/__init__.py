"""Measures the parts that decide the speed, on the machine at hand."""
