"""Encodes texts into matrices with a trained retriever."""

import bisect
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from lsrjax.data.tokenization import TextField, TextTokenizer, pad
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.views import Dense, MultiVector, Vector, View, Views
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several

# Lengths of padded batches: steps of a quarter to a half.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# The cost of compiling for one of them, in tokens of padding that it must save.
_WORTH_COMPILING = 8192
# Tokens that a processor computes at once. From 4,096 on, XLA's compiler for CPU makes
# other kernels, which take a quarter to a third longer per token.
_CPU_TOKENS = 3072


class TextEncoder:
    """Encodes texts into one matrix per view."""

    def __init__(
        self,
        spec: retriever.RetrieverSpec,
        tokenizer: TextTokenizer,
        *,
        batch_size: int = 64,
        dtype: str = "float32",
        poll: Callable[[], None] = lambda: None,
    ):
        """An encoder for one architecture; batches have at least a text per device.

        `poll` is called ahead of each batch; what it raises ends the encoding.
        """
        self.spec = spec
        self._poll = poll
        self.tokenizer = tokenizer
        self._mesh = jax.sharding.get_mesh()
        devices = sharding.axis_size(sharding.DATA)
        self._batch_size = math.ceil(batch_size / devices) * devices
        self._dtype = dtype
        graphdef, _ = retriever.split(spec, dtype=jnp.dtype(dtype), weights_only=True)
        everywhere = None if self._mesh.empty else sharding.replicated(self._mesh)
        self._apply = jax.jit(
            lambda params, text, role: retriever.apply(
                graphdef, params, text, role=role
            ),
            static_argnums=2,
            out_shardings=everywhere,
        )

    def encode(
        self,
        params: dict,
        texts: Sequence[str],
        max_length: int,
        role: str = "document",
        names: Sequence[str] | None = None,
    ) -> dict[str, sparse.csr_matrix | TokenMatrix]:
        """The views of N texts, each [N, terms of the view] float32.

        Embeddings are rows of such a matrix as well; those of tokens, a `TokenMatrix`.
        Queries are multiplied by the scale of the view's score in the sum over views.

        Raises:
          InputError: a vector is not finite; names the text.
        """
        ids = TextField.of(self.spec, self.tokenizer, role, max_length).ids(texts)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = self._batch_size
        batches = [by_length[i : i + size] for i in range(0, len(ids), size)]
        lengths = padded_lengths([len(ids[b[-1]]) for b in batches], max_length, size)
        pieces = [
            (batch[start : start + at_once], at_once, length)
            for batch, length in zip(batches, lengths, strict=True)
            for at_once in [self._at_once(length)]
            for start in range(0, len(batch), at_once)
        ]
        parts = []
        pending = None
        for chosen, at_once, length in pieces:
            self._poll()
            # A short batch is filled up, so that its shape need not be compiled.
            rows = [ids[i] for i in chosen]
            rows += [rows[-1]] * (at_once - len(rows))
            text = pad(rows, self.tokenizer.pad_id, length, ())
            # Models that can mix roles share compiled programs between them.
            apart = self.spec.roles_apart
            if not apart:
                text["query"] = np.full(len(rows), role == "query")
            views = self._apply(params, self._on_devices(text), role if apart else None)
            # The device computes a batch while the host compresses the previous one.
            if pending:
                parts.append(self._compressed(*pending, role))
            pending = views, len(chosen)
        if pending:
            parts.append(self._compressed(*pending, role))
        order = np.argsort(by_length)
        views = {
            name: _stacked([part[name] for part in parts], terms)[order]
            for name, terms in self.spec.views.items()
        }
        for name, matrix in views.items():
            if (row := _first_not_finite(matrix)) is not None:
                named = names[row] if names else f"{row + 1} of {len(texts):,}"
                raise InputError(
                    f"The vector (view {name!r}) of the {role} {named!r} has numbers"
                    f" that are not finite. It begins {texts[row][:60]!r}. The model"
                    " has diverged, or its weights are too large for"
                    f" {self._dtype}: use an earlier checkpoint, or train it again"
                    " with a lower config.optim.lr."
                )
        most = self.spec.most_active
        return _largest(views, most) if most and self.spec.sparse else views

    def _at_once(self, length: int) -> int:
        """Texts of a batch, padded to `length`, that are computed together."""
        if jax.default_backend() != "cpu":
            return self._batch_size
        devices = sharding.axis_size(sharding.DATA)
        each = self._batch_size // devices
        return math.ceil(each / math.ceil(each * length / _CPU_TOKENS)) * devices

    def _on_devices(self, text: dict) -> dict:
        if self._mesh.empty:
            return text
        rows = range(self._mesh.shape[sharding.DATA])
        return sharding.to_global(text, self._mesh, rows)

    def _compressed(self, views: Views, count: int, role: str):
        found = {}
        for name, terms in self.spec.views.items():
            scale = views[name].scale if role == "query" else 1.0
            matrix = _to_matrix(views[name], terms)[:count]
            found[name] = matrix if scale == 1 else matrix * scale
        return found


def padded_lengths(
    longest: Sequence[int], max_length: int, batch_size: int
) -> list[int]:
    """The length that each batch is padded to, one of `BUCKETS` or `max_length`.

    It depends on the texts alone, not on what was compiled before, so that a file
    encoded in two runs gets the same numbers.

    `longest` has the tokens of each batch's longest text, ascending.
    """
    allowed = [*sorted(b for b in BUCKETS if b < max_length), max_length]
    # Number of batches -> the lowest cost for that many, and their lengths.
    ways: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for tokens in allowed:
        end = bisect.bisect_right(longest, tokens)
        for start, (cost, lengths) in list(ways.items()):
            if start < end:
                cost += (end - start) * batch_size * tokens + _WORTH_COMPILING
                way = cost, lengths + [tokens] * (end - start)
                ways[end] = min(way, ways.get(end, way))
    return ways[len(longest)][1]


def _to_matrix(view: View, terms: int) -> sparse.csr_matrix | TokenMatrix:
    if isinstance(view, Vector):
        return _compressed_rows(jax.device_get(view.weights_BV)[:, :terms])
    if isinstance(view, Dense):
        return _compressed_rows(jax.device_get(view.embedding_BD))
    if isinstance(view, MultiVector):
        return TokenMatrix.of(*jax.device_get((view.tokens_BLD, view.mask_BL)))
    ids_BK, weights_BK = jax.device_get((view.ids_BK, view.weights_BK))
    rows, places = np.nonzero(weights_BK)
    values, terms_of = weights_BK[rows, places], ids_BK[rows, places]
    # Converting from coordinates sums a token's repeats.
    shape = (len(ids_BK), view.size)
    return sparse.csr_matrix((values, (rows, terms_of)), shape=shape)


def _compressed_rows(dense_BV: np.ndarray) -> sparse.csr_matrix:
    """Like `sparse.csr_matrix`, in a fraction of the time."""
    B, V = dense_BV.shape
    flat_BV = np.ravel(dense_BV)
    places = np.flatnonzero(flat_BV != 0)
    starts = np.searchsorted(places, V * np.arange(B + 1))
    return sparse.csr_matrix((flat_BV[places], places % V, starts), shape=(B, V))


def _largest(
    views: dict[str, sparse.csr_matrix], most: int
) -> dict[str, sparse.csr_matrix]:
    """The `most` largest weights of each text, over all views together."""
    whole = sparse.hstack(list(views.values()), format="csr")
    rows = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr))
    order = np.lexsort((-np.abs(whole.data), rows))
    rank = np.empty(whole.nnz, np.int64)
    rank[order] = np.arange(whole.nnz) - whole.indptr[rows]
    whole.data[rank >= most] = 0
    whole.eliminate_zeros()
    ends = np.cumsum([matrix.shape[1] for matrix in views.values()])
    starts = (0, *ends[:-1])
    return {
        name: whole[:, start:end]
        for name, start, end in zip(views, starts, ends, strict=True)
    }


def _first_not_finite(matrix: sparse.csr_matrix | TokenMatrix) -> int | None:
    if isinstance(matrix, TokenMatrix):
        finite, starts = np.isfinite(matrix.tokens_TD).all(axis=1), matrix.starts
    else:
        finite, starts = np.isfinite(matrix.data), matrix.indptr
    wrong = np.flatnonzero(~finite)
    if not len(wrong):
        return None
    return int(np.searchsorted(starts, wrong[0], side="right")) - 1


def _stacked(parts: list, terms: int) -> sparse.csr_matrix | TokenMatrix:
    if parts and isinstance(parts[0], TokenMatrix):
        return maxsim.stacked(parts)
    nothing = sparse.csr_matrix((0, terms), dtype=np.float32)
    return sparse.vstack([nothing, *parts], format="csr")


def joined(
    views: dict[str, sparse.csr_matrix | TokenMatrix],
) -> sparse.csr_matrix | TokenMatrix | Several:
    """All views side by side, [N, E + M]: pivot columns first, then source columns.

    Embeddings of tokens stay a `TokenMatrix`, or become part of `Several`.
    """
    matrices = list(views.values())
    if any(isinstance(matrix, TokenMatrix) for matrix in matrices):
        return matrices[0] if len(matrices) == 1 else Several(matrices)
    return sparse.hstack(list(views.values()), format="csr")
