"""The embedded parallel texts: how they are read, and how they were made."""
