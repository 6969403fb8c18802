"""Training states and saved models that can be trusted.

A stage's folder holds `model.json` (its `RetrieverSpec`), `tokenizer/`,
`pivot_tokenizer/` (MILCO), `checkpoints/<step>/` with their `digests/<step>.json`,
`metrics.jsonl` and, once the stage is finished, `done.json`; in `damaged/` lies what
was set aside. `python -m lsrjax.checkpoint` lists, verifies and compares them.
"""
