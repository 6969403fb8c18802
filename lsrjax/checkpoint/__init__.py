"""Checkpoints of a stage that can be trusted, and retrievers read back from them.

A stage's folder holds `model.json` (its `RetrieverSpec`), `tokenizer/`,
`pivot_tokenizer/` (MILCO), `checkpoints/<step>/` with their `digests/<step>.json`,
`metrics.jsonl` and, once the stage is finished, `done.json`; in `damaged/` lies what
was set aside. `python -m lsrjax.checkpoint` lists, verifies and compares them.
"""

from lsrjax.checkpoint.files import (
    DONE_FILE,
    MODEL_FILE,
    PIVOT_TOKENIZER,
    TOKENIZER,
    write_json,
)
from lsrjax.checkpoint.lock import one_run
from lsrjax.checkpoint.models import (
    MODEL_FILES,
    SavedModel,
    holds_stages,
    load_model,
    load_shapes,
    load_spec,
    save_model,
    stage_folders,
    write_model_files,
)
from lsrjax.checkpoint.stock import finished_steps, take_stock
from lsrjax.checkpoint.store import Checkpoints

__all__ = [
    "DONE_FILE",
    "MODEL_FILE",
    "MODEL_FILES",
    "PIVOT_TOKENIZER",
    "TOKENIZER",
    "Checkpoints",
    "SavedModel",
    "finished_steps",
    "holds_stages",
    "load_model",
    "load_shapes",
    "load_spec",
    "one_run",
    "save_model",
    "stage_folders",
    "take_stock",
    "write_json",
    "write_model_files",
]
