"""What every format of an exported retriever is written from, and read into."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from lsrjax.models.retriever import RetrieverSpec


@dataclasses.dataclass(frozen=True)
class Portable:
    """A retriever with what other programs want to know of it.

    Attributes:
      spec: what it is.
      params: nested dict of host arrays.
      tokenizer: folder of the tokenizer of the encoder's vocabulary.
      pivot_tokenizer: MILCO: folder of the English tokenizer.
      name: where it came from, for messages and the model card.
      query_length: tokens a query is cut to.
      document_length: tokens a document is cut to.
      config: of the stage that trained it; None where that is not known.
      results: of the run's evaluation, by language and metric; None without one.
      evaluation: the same beside other systems, as Markdown; empty without one.
      unused: tensors of the files it came from that nothing here uses, by their names
        there.
      dev: the metrics of these weights on the dev data of the run; empty without.
      stages: configs of all stages of the run by name, which `stage:NAME` refers to.
    """

    spec: RetrieverSpec
    params: Mapping[str, Any]
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    name: str
    query_length: int
    document_length: int
    config: Mapping[str, Any] | None = None
    results: Mapping[str, Any] | None = None
    evaluation: str = ""
    unused: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dev: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
