"""The table of tasks: one line each."""

from collections.abc import Iterator, Mapping
from typing import Any

from lsrjax import options
from lsrjax.retrieval.tasks.beir import Beir, BeirHub, NanoBeir
from lsrjax.retrieval.tasks.clef import Clef
from lsrjax.retrieval.tasks.debian import Debian
from lsrjax.retrieval.tasks.hub import Hub, MiraclHard
from lsrjax.retrieval.tasks.irds import IrDatasets
from lsrjax.retrieval.tasks.mkqa import Mkqa
from lsrjax.retrieval.tasks.mldr import Mldr
from lsrjax.retrieval.tasks.mteb import Mteb
from lsrjax.retrieval.tasks.neuclir import Hc4, Neuclir
from lsrjax.retrieval.tasks.task import Task
from lsrjax.retrieval.tasks.wikipedia import Miracl, MrTydi

# An entry has `Options`, `parts(options)`, the options of each of its corpora, and
# `load(options)`, the task of one of them.
TASKS: Mapping[str, Any] = {
    "beir": Beir,
    "beir_hub": BeirHub,
    "nanobeir": NanoBeir,
    "miracl": Miracl,
    "miracl_hard": MiraclHard,
    "mr_tydi": MrTydi,
    "mldr": Mldr,
    "mkqa": Mkqa,
    "neuclir": Neuclir,
    "hc4": Hc4,
    "clef": Clef,
    "hub": Hub,
    "ir_datasets": IrDatasets,
    "mteb": Mteb,
    "debian": Debian,
}


class NoTask:
    """No benchmark."""

    Options = options.Options


DEV_TASKS: Mapping[str, Any] = {"": NoTask, **TASKS}


def loaded(chosen: options.Chosen) -> Iterator[Task]:
    """The tasks of an entry: one for each corpus, loaded when it is asked for.

    `chosen` is what `options.resolve(TASKS, …)` gives.
    """
    for part in chosen.entry.parts(chosen.options):
        yield chosen.entry.load(part)
