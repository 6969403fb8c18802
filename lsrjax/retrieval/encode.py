"""Texts to sparse matrices with a trained retriever."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from lsrjax import reps
from lsrjax.data.tokenization import TextTokenizer, pad
from lsrjax.models import retriever


class TextEncoder:
    """Encodes texts into one CSR matrix per view."""

    def __init__(
        self,
        spec: retriever.RetrieverSpec,
        tokenizer: TextTokenizer,
        *,
        buckets: Sequence[int],
        batch_size: int = 64,
        dtype: str = "float32",
    ):
        """An encoder for one architecture; weights come with each call.

        Args:
          spec: the retriever's.
          tokenizer: of the encoder's vocabulary.
          buckets: lengths of padded batches.
          batch_size: texts encoded at once.
          dtype: of matrix products.
        """
        self.spec = spec
        self.tokenizer = tokenizer
        self._buckets = buckets
        self._batch_size = batch_size
        graphdef, _ = retriever.split(spec, dtype=jnp.dtype(dtype))
        self._apply = jax.jit(
            lambda params, text: retriever.apply(graphdef, params, text)
        )

    def encode(
        self, params: dict, texts: Sequence[str], max_length: int
    ) -> dict[str, sparse.csr_matrix]:
        """The views of N texts, each [N, terms of the view] float32.

        Args:
          params: the retriever's.
          texts: N texts.
          max_length: tokens a text is cut to.
        """
        ids = self.tokenizer.ids(texts, max_length)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts = []
        pending = None
        for start in range(0, len(ids), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            # A last batch that is short is filled up, so that no shape is compiled
            # for it alone.
            rows = [ids[i] for i in chosen]
            rows += [rows[-1]] * (self._batch_size - len(rows))
            text = pad(rows, self.tokenizer.pad_id, max_length, self._buckets)
            views = self._apply(params, text)
            # The device computes a batch while the host compresses the one before.
            if pending:
                parts.append(_compressed(*pending))
            pending = views, len(chosen)
        if pending:
            parts.append(_compressed(*pending))
        order = np.argsort(by_length)
        return {
            name: sparse.vstack(
                [sparse.csr_matrix((0, terms), dtype=np.float32)]
                + [part[name] for part in parts],
                format="csr",
            )[order]
            for name, terms in self.spec.views.items()
        }


def _compressed(views: reps.Views, count: int) -> dict[str, sparse.csr_matrix]:
    return {n: _to_csr(v)[:count] for n, v in jax.device_get(views).items()}


def _to_csr(view: reps.Vector | reps.Bag) -> sparse.csr_matrix:
    if isinstance(view, reps.Vector):
        return sparse.csr_matrix(view.weights_BV)
    rows, places = np.nonzero(view.weights_BK)
    values = view.weights_BK[rows, places]
    shape = (len(view.ids_BK), view.size)
    # Converting from coordinates sums a token's repeats.
    return sparse.csr_matrix((values, (rows, view.ids_BK[rows, places])), shape=shape)


def joined(views: dict[str, sparse.csr_matrix]) -> sparse.csr_matrix:
    """All views side by side, [N, E + M]: pivot columns first, then source columns."""
    return sparse.hstack(list(views.values()), format="csr")
