"""The embedded parallel texts, and the program that made them."""
