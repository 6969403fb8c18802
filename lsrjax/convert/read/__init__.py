"""Models as other programs save them, read into ours."""
