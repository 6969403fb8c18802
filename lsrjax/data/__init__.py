"""Sources, mixing and loading of training data; the embedded data set."""
