"""The calls of `lsrjax` from Python: a model, searches, evaluations, runs."""
