"""A retriever from Python: vectors of texts, their terms, and why they match."""

import functools
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from scipy import sparse

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import open_portable
from lsrjax.distributed import processes
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.retrieval import terms
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.engines.engine import Documents
from lsrjax.retrieval.engines.exact import MatrixEngine
from lsrjax.retrieval.index_folder import Index
from lsrjax.retrieval.matches import Match
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.several_views import SEVERAL
from lsrjax.retrieval.text_search import TextSearch
from lsrjax.retrieval.vector_formats.vectors import DENSE, SPARSE, TOKENS


def load(
    name: str,
    *,
    query_length: int = 0,
    document_length: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    language: str = "",
) -> "Model":
    """Opens a model.

    Args:
      name: a run's folder (its last stage), a stage's folder, a Hugging Face folder or
        a hub id, as of the commands' `--model`.
      query_length: tokens a query is cut to; 0: as in training, else 64.
      document_length: the same of a document; 0: as in training, else 256.
      batch_size: texts encoded at once; fewer are filled up.
      dtype: of matrix products, "float32" or "bfloat16".
      language: of all texts, for an encoder that computes by it; empty: its own
        default.

    Raises:
      InputError: there is no such model, or it cannot be used this way.
    """
    processes.check_devices()
    saved = open_portable(name)
    if language == STATED:
        raise InputError(f"Nothing states a text's language here: not {STATED!r}.")
    if language:
        saved = saved.in_language(language)
    searcher = Searcher.portable(
        saved,
        batch_size=batch_size,
        dtype=dtype,
        query_length=query_length,
        document_length=document_length,
    )
    return Model(saved, searcher)


class Model:
    """An open retriever; `load` makes it.

    Attributes:
      name: where it came from.
      searcher: what encodes its texts.
    """

    def __init__(self, saved: SavedModel, searcher: Searcher):
        self.name, self.searcher = saved.name, searcher
        self._saved = saved

    def __repr__(self) -> str:
        spec = self.searcher.encoder.spec
        views = ", ".join(f"{view} {size:,}" for view, size in spec.views.items())
        return f"<lsrjax {spec.head} {self.name!r}: {views}>"

    def encode_queries(self, texts: Sequence[str]) -> Documents:
        """The vectors of N queries, all views side by side.

        Returns:
          [N, terms] scipy CSR float32. A model of one embedding a text gives one of its
          numbers; one of token embeddings a `TokenMatrix`, or `Several` of both kinds.

        Raises:
          InputError: a vector is not finite, or `texts` is no list of texts.
        """
        return self._joined(self.searcher.queries(several(texts)))

    def encode_documents(self, texts: Sequence[str]) -> Documents:
        """The vectors of N documents, as of `encode_queries`."""
        return self._joined(self.searcher.documents(several(texts)))

    def _joined(self, views) -> Documents:
        return _sorted(joined(views, apart=not self.searcher.encoder.spec.sparse))

    @functools.cached_property
    def term_names(self) -> list[str]:
        """The name of each column of the vectors.

        Raises:
          InputError: the numbers of this model's vectors are no weights of terms.
        """
        self._check_sparse()
        tokenizer = self.searcher.encoder.tokenizer
        spec, pivot = self.searcher.encoder.spec, self.searcher.pivot_tokenizer
        return terms.names_of(spec, tokenizer, pivot)

    def terms(self, vectors: sparse.csr_matrix) -> list[dict[str, float]]:
        """The terms of each vector with their weights, the largest first.

        Args:
          vectors: [N, terms] of `encode_queries` or `encode_documents`.
        """
        names, found = self.term_names, []
        for row in range(vectors.shape[0]):
            own = slice(*vectors.indptr[row : row + 2])
            columns, weights = vectors.indices[own], vectors.data[own]
            order = np.argsort(-weights, kind="stable")
            found.append({names[columns[i]]: float(weights[i]) for i in order})
        return found

    def explain(self, query: str, document: str) -> list[Match]:
        """The terms that a query and a document share, those that add most first.

        Each has `view`, `term`, its weights `query` and `document`, and their product
        `score`; all products together are the document's score. Of token embeddings,
        each token of the query with the most similar one of the document.
        """
        search = TextSearch(self.index([document]), self.searcher).search
        found = search(several([query]), 1)
        return [match for hit in found[0] for match in hit.matches]

    def index(self, documents: Sequence[str] | Mapping[str, str]) -> Index:
        """Documents in memory, to search exactly and more than once.

        Args:
          documents: texts, or ids to texts. Ids of texts are their numbers from 0.
        """
        if isinstance(documents, Mapping):
            ids, texts = [*documents], [*documents.values()]
        else:
            texts = several(documents)
            ids = [str(i) for i in range(len(texts))]
        vectors = self.encode_documents(texts)
        return Index(
            name=f"the documents in memory of {self.name}",
            engine=MatrixEngine(vectors),
            ids=ids,
            texts=texts,
            terms=self.term_names if self.searcher.encoder.spec.sparse else None,
            kind=self._kind(vectors),
            columns=vectors.shape[1],
            made_of={"weights": self.digest, "model": self.name},
            options={},
        )

    @functools.cached_property
    def digest(self) -> str:
        """Tells apart models of other weights."""
        return self._saved.digest()

    def _kind(self, vectors: Documents) -> str:
        if isinstance(vectors, TokenMatrix | Several):
            return TOKENS if isinstance(vectors, TokenMatrix) else SEVERAL
        return SPARSE if self.searcher.encoder.spec.sparse else DENSE

    def _check_sparse(self) -> None:
        if not self.searcher.encoder.spec.sparse:
            raise InputError(
                f"{self.name} represents texts by embeddings, whose numbers have no"
                " terms. Load a model whose vectors are sparse."
            )


def several(texts: Iterable[str]) -> list[str]:
    """The texts as a list, since they are read more than once.

    Raises:
      InputError: it is one text, or no list of texts.
    """
    if isinstance(texts, str):
        raise InputError(f"{texts[:60]!r} is one text; give a list of texts.")
    if isinstance(texts, Mapping | Set) or not isinstance(texts, Iterable):
        raise InputError(f"{type(texts).__name__} is no list of texts; give one.")
    for number, text in enumerate(texts := [*texts], 1):
        if not isinstance(text, str):
            raise InputError(
                f"text {number} is {text!r:.60}, not a text; give a list of texts."
            )
    return texts


def _sorted(vectors: Documents) -> Documents:
    if isinstance(vectors, sparse.csr_matrix):
        vectors.sort_indices()
    return vectors
