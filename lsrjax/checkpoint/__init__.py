"""Verified training states and saved models.

A stage's folder contains `model.json` (its `RetrieverSpec`), `tokenizer/`,
`pivot_tokenizer/` (MILCO), `checkpoints/<step>/` with their `digests/<step>.json`,
`metrics.jsonl` and, once the stage is finished, `done.json`; damaged files are moved to
`damaged/`. `lsrjax checkpoint` lists, verifies and compares them.
"""
