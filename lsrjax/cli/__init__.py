"""The commands, one file each, on one library of flags."""
