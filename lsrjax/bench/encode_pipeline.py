"""`encode --pipeline`: what reading, tokenizing and writing cost beside the model."""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.table import Table

from lsrjax.bench import measure
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import encode_job
from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.retrieval.encode_corpus import encode_parts, work_of
from lsrjax.retrieval.vector_formats.table import FORMATS
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles


def table(
    model: SavedModel, texts: list[str], batch: int, repeats: int, formats: list[str]
) -> Table:
    """Texts a second of the model alone, and with input and writing to formats.

    Alone, texts are tokenized before and vectors are dropped; shares are of its speed.
    Both start with compiled programs. Rounds are in turn; the table has medians. On a
    CPU that other programs use as well, the seconds of this process on it say more than
    those of the clock.
    """
    with tempfile.TemporaryDirectory() as temporary, encode_job.local_mesh():
        bench = _Pipeline(pathlib.Path(temporary), model, texts, batch)
        runs: dict[str, Callable[[], None]] = {"the model alone": bench.alone}
        for name in formats:
            runs[f"with input and {name}"] = functools.partial(bench.whole, name)
        bench.alone()  # compiles
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, once in runs.items():
                started, used = time.perf_counter(), time.process_time()
                once()
                passed = time.perf_counter() - started, time.process_time() - used
                seconds[name].append(passed)
    found = Table(title=f"{model.name}: {len(texts):,} documents, batches of {batch}")
    found.add_column("what")
    for column in ("seconds", "texts/s", "share", "CPU s", "share"):
        found.add_column(column, justify="right")
    medians = {name: np.median(of, axis=0) for name, of in seconds.items()}
    alone = medians["the model alone"]
    for name, one in medians.items():
        speed, (share, cpu) = len(texts) / one[0], alone / one
        found.add_row(
            *(name, measure.figure(one[0]), f"{speed:,.0f}", f"{share:.2f}"),
            *(measure.figure(one[1]), f"{cpu:.2f}"),
        )
    return found


class _Pipeline:
    def __init__(self, folder: pathlib.Path, model: SavedModel, texts, batch: int):
        self._folder = folder
        path = folder / "texts.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for i, text in enumerate(texts):
                file.write(json.dumps({"id": f"d{i}", "text": text}) + "\n")
        options = {"dtype": "float32", "role": "document", "prune": "", "quantize": 0.0}
        options["max_length"] = model.document_length
        self._encoding = encode_job.encoding_of(model, options, batch)
        self._abouts = encode_job.abouts_of(model, self._encoding, {})
        self._texts = NumberedTexts(str(path), "--texts")
        step = self._encoding.window
        self._prepared = [
            self._encoding.prepare(*self._texts.read(at, min(at + step, len(texts))))
            for at in range(0, len(texts), step)
        ]

    def alone(self) -> None:
        for prepared in self._prepared:
            self._encoding.compute(prepared)

    def whole(self, name: str) -> None:
        form, out = FORMATS[name], self._folder / f"out{FORMATS[name].suffix}"
        encoding = dataclasses.replace(self._encoding, quantize=form.quantize)
        whole = bool(form.quantize)
        targets = {
            view: Target.of(out.with_stem(f"out{view}"), form, about, whole)
            for view, about in self._abouts.items()
        }
        files = VectorFiles(self._folder / "partial", targets, {})
        step = self._encoding.window
        work = work_of(files, 0, len(self._texts), step, lambda: None)
        encode_parts(encoding, self._texts, work)
        for target in targets.values():
            target.path.unlink()
            shutil.rmtree(self._folder / "partial", ignore_errors=True)
