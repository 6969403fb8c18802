"""Checkpoints of a stage that can be trusted, and retrievers read back from them.

A stage's folder holds `model.json` (its `RetrieverSpec`), `tokenizer/`,
`pivot_tokenizer/` (MILCO), `checkpoints/<step>/` with their `digests/<step>.json`,
`metrics.jsonl` and, once the stage is finished, `done.json`; in `damaged/` lies what
was set aside. `python -m lsrjax.checkpoint` lists, verifies and compares them.
"""
