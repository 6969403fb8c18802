"""Encodes texts into matrices with a trained retriever."""

import bisect
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from lsrjax.data.examples import ANY
from lsrjax.data.reading.ids import check_characters
from lsrjax.data.tokenization import TextField, TextTokenizer, pad
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.views import Dense, MultiVector, Vector, View, Views
from lsrjax.ops import hardware
from lsrjax.ops.compact import Compact, compact
from lsrjax.retrieval import maxsim
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.vector_formats.vectors import DENSE, SPARSE, TOKENS

# Lengths of padded batches: steps of a quarter to a half.
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# The cost of compiling for one of them, in tokens of padding that it must save in every
# window of texts. Accelerators compile for longer, and compute more in that time.
_WORTH_COMPILING, _WORTH_ON_ACCELERATORS = 2**13, 2**15
# Tokens that a processor computes at once. From 4,096 on, XLA's compiler for CPU makes
# other kernels, which take a quarter to a third longer per token.
_CPU_TOKENS = 3072
# Of a text's terms, those that an accelerator sends to the host by themselves.
_SENT_TERMS = 2048


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Texts as token ids, and which are computed together.

    Attributes:
      pieces: the numbers of texts, by the length that they are padded to and how many
        are computed together.
      languages: of each text, as the encoder numbers them; None: its own default.
    """

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    role: str
    names: Sequence[str] | None
    pieces: dict[tuple[int, int], list[list[int]]]
    languages: Sequence[int] | None = None


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
        each_device: bool = False,
    ):
        """An encoder for one architecture, on the devices of the mesh that is set.

        Args:
          batch_size: texts encoded at once, rounded up to one for each device.
          poll: called ahead of each batch; what it raises ends the encoding.
          each_device: `batch_size` is of each device. Then every device computes what
            a single one would, and the results do not depend on their number.
        """
        self.spec = spec
        self._poll = poll
        self.tokenizer = tokenizer
        self._mesh = jax.sharding.get_mesh()
        devices = sharding.axis_size(sharding.DATA)
        self._places = devices if each_device else 1  # that take a batch each
        self._shares = devices // self._places  # of a batch
        self._batch_size = math.ceil(batch_size / self._shares) * self._shares
        self._dtype = dtype
        self._on_cpu = hardware.device().platform == "cpu"
        self._sent_terms = 0 if self._on_cpu else _SENT_TERMS  # 0: whole rows
        graphdef, self._abstract = retriever.split(
            spec, dtype=jnp.dtype(dtype), weights_only=True
        )
        placed = None
        if not self._mesh.empty:
            over = sharding.over_data if each_device else sharding.replicated
            placed = over(self._mesh)
        # As a loop, layers are compiled once; nothing waits for a backward pass.
        self._views = lambda params, text, role: retriever.apply(
            graphdef, params, text, role=role, remat="layer"
        )
        self._apply = jax.jit(self._views, static_argnums=2, out_shardings=placed)
        self._compact = jax.jit(compact, static_argnums=1, out_shardings=placed)
        self._known: set[tuple[int, int, str]] = set()

    def kinds(self) -> dict[str, str]:
        """What each view holds: `SPARSE`, `DENSE` or `TOKENS`; compiles nothing."""
        shape = jax.ShapeDtypeStruct((1, 3), jnp.int32)
        text = {"ids": shape, "mask": shape}
        with sharding.on_one_device():
            views = jax.eval_shape(
                lambda params, text: self._views(params, text, "document"),
                self._abstract,
                text,
            )
        of = {Dense: DENSE, MultiVector: TOKENS}
        return {
            name: next((of[c] for c in of if isinstance(views[name], c)), SPARSE)
            for name in self.spec.views
        }

    def encode(
        self,
        params: dict,
        texts: Sequence[str],
        max_length: int,
        role: str = "document",
        names: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
    ) -> dict[str, sparse.csr_matrix | TokenMatrix]:
        """The views of N texts, each [N, terms of the view] float32.

        Embeddings are rows of such a matrix as well; those of tokens, a `TokenMatrix`.
        Queries are multiplied by the scale of the view's score in the sum over views.

        Args:
          languages: of each text, for an encoder that computes by it; None: its own
            default.

        Raises:
          InputError: a vector is not finite, a text has lone surrogates, or a language
            is not stated or not one of the encoder's.
        """
        prepared = self.prepare(texts, max_length, role, names, languages=languages)
        return self.encode_prepared(params, prepared)

    def prepare(
        self,
        texts: Sequence[str],
        max_length: int,
        role: str = "document",
        names: Sequence[str] | None = None,
        window: int = 0,
        languages: Sequence[str] | None = None,
    ) -> "Prepared":
        """What `encode` does on the host alone, ahead of `encode_prepared`.

        Args:
          window: texts that are sorted by length together; 0: all. It decides what they
            are padded to, so with it the vectors do not depend on how many texts are
            encoded in one call.
        """
        for number, text in enumerate(texts, start=1):
            check_characters(text, f"text {number} ({text!a:.60})")
        ids = TextField.of(self.spec, self.tokenizer, role, max_length).ids(texts)
        pieces: dict[tuple[int, int], list[list[int]]] = {}
        window = window or max(len(ids), 1)
        for first in range(0, len(ids), window):
            own = range(first, min(first + window, len(ids)))
            by_length = sorted(own, key=lambda i: len(ids[i]))
            size = self._batch_size
            batches = [by_length[i : i + size] for i in range(0, len(own), size)]
            longest = [len(ids[batch[-1]]) for batch in batches]
            worth = _WORTH_COMPILING if self._on_cpu else _WORTH_ON_ACCELERATORS
            lengths = padded_lengths(longest, max_length, size, worth)
            for batch, length in zip(batches, lengths, strict=True):
                at_once = self._at_once(length)
                pieces.setdefault((length, at_once), []).extend(
                    batch[i : i + at_once] for i in range(0, len(batch), at_once)
                )
        spoken = None if languages is None else self.numbers(languages, role)
        return Prepared(texts, ids, role, names, pieces, spoken)

    def numbers(self, languages: Sequence[str], role: str) -> list[int]:
        """The numbers of texts' languages, see `prepare`."""
        number = functools.cache(self.spec.encoder.language_number)
        if unstated := {"", ANY} & set(languages):
            raise InputError(
                f"The language of a {role} is not stated ({unstated.pop()!r}), and each"
                " text is to be encoded in its own. Name one language for all texts"
                " instead of 'stated', or state those of the texts."
            )
        return list(map(number, languages))

    def encode_prepared(
        self, params: dict, prepared: "Prepared"
    ) -> dict[str, sparse.csr_matrix | TokenMatrix]:
        """As `encode`, of texts that `prepare` has prepared."""
        self._compile(params, prepared)
        parts: list[dict] = []
        order: list[int] = []
        pending = None
        for (length, at_once), pieces in prepared.pieces.items():
            for start in range(0, len(pieces), self._places):
                self._poll()
                together = pieces[start : start + self._places]
                started = self._started(params, prepared, together, length, at_once)
                # The device computes a batch while the host compresses the one before.
                if pending:
                    parts.append(self._compressed(*pending, prepared.role))
                order += [i for piece in together for i in piece]
                pending = started, [len(piece) for piece in together], at_once
        if pending:
            parts.append(self._compressed(*pending, prepared.role))
        back = np.argsort(order)
        found = {
            name: _stacked([part[name] for part in parts], terms)[back]
            for name, terms in self.spec.views.items()
        }
        self._check_finite(found, prepared)
        most = self.spec.most_active
        return _largest(found, most) if most and self.spec.sparse else found

    def _compile(self, params, prepared: "Prepared") -> None:
        """Compiles for all lengths side by side; the calls find the programs."""
        role = prepared.role
        new = [shape for shape in prepared.pieces if (*shape, role) not in self._known]
        self._known |= {(*shape, role) for shape in new}
        # Processes that compute together compile in one order.
        if len(new) > 1 and jax.process_count() == 1:
            lowered = [
                self._apply.lower(params, *self._inputs(prepared, [[]], *shape))
                for shape in new
            ]
            with concurrent.futures.ThreadPoolExecutor(len(new)) as pool:
                for program in [pool.submit(one.compile) for one in lowered]:
                    program.result()

    def _inputs(self, prepared, together, length: int, at_once: int):
        """The token ids of a batch on each device, and the role that all have."""
        rows: list[Sequence[int]] = []
        spoken: list[int] = []
        # A short batch is filled up, so that its shape need not be compiled.
        for piece in [*together, *[[]] * (self._places - len(together))]:
            own = [prepared.ids[i] for i in piece]
            rows += own + [(own or rows or [[]])[-1]] * (at_once - len(own))
            if prepared.languages is not None:
                named = [prepared.languages[i] for i in piece]
                spoken += named + [0] * (at_once - len(named))
        text = pad(rows, self.tokenizer.pad_id, length, ())
        if prepared.languages is not None:
            text["language"] = np.array(spoken, np.int32)
        # Models that can mix roles share compiled programs between them.
        apart = self.spec.roles_apart
        if not apart:
            text["query"] = np.full(len(rows), prepared.role == "query")
        return self._on_devices(text), prepared.role if apart else None

    def _started(
        self, params, prepared, together, length: int, at_once: int
    ) -> tuple[Views, dict[str, Compact]]:
        """Starts the computation of a batch on each device.

        Returns:
          Its views; and of those that are sent by their terms alone, these, by name.
        """
        views = self._apply(params, *self._inputs(prepared, together, length, at_once))
        sent = {}
        if self._sent_terms:
            for name, view in views.items():
                if isinstance(view, Vector):
                    sent[name] = self._compact(view.weights_BV, self._sent_terms)
                    for array in sent[name]:
                        array.copy_to_host_async()
        return views, sent

    def _check_finite(self, views: dict, prepared: "Prepared") -> None:
        texts, names = prepared.texts, prepared.names
        for name, matrix in views.items():
            if (row := _first_not_finite(matrix)) is not None:
                named = names[row] if names else f"{row + 1} of {len(texts):,}"
                raise InputError(
                    f"The vector (view {name!r}) of the {prepared.role} {named!r} has"
                    f" numbers that are not finite. It begins {texts[row][:60]!r}. The"
                    " model has diverged, or its weights are too large for"
                    f" {self._dtype}: use an earlier checkpoint, or train it again"
                    " with a lower config.optim.lr."
                )

    def _at_once(self, length: int) -> int:
        """Texts of a batch, padded to `length`, that are computed together."""
        if not self._on_cpu:
            return self._batch_size
        each = self._batch_size // self._shares
        return math.ceil(each / math.ceil(each * length / _CPU_TOKENS)) * self._shares

    def _on_devices(self, text: dict) -> dict:
        if self._mesh.empty:
            return text
        rows = range(self._mesh.shape[sharding.DATA])
        return sharding.to_global(text, self._mesh, rows)

    def _compressed(
        self,
        started: tuple[Views, dict[str, Compact]],
        counts: list[int],
        at_once: int,
        role: str,
    ):
        views, sent = started
        found = {}
        # Without the rows that filled a batch up.
        rows = np.concatenate(
            [np.arange(count) + i * at_once for i, count in enumerate(counts)]
        )
        whole = len(rows) == rows[-1] + 1
        kept = slice(len(rows)) if whole else rows
        for name, terms in self.spec.views.items():
            scale = views[name].scale if role == "query" else 1.0
            matrix = _to_matrix(views[name], terms, sent.get(name))[kept]
            found[name] = matrix if scale == 1 else matrix * scale
        return found


def padded_lengths(
    longest: Sequence[int],
    max_length: int,
    batch_size: int,
    worth: int,
) -> list[int]:
    """The length that each batch is padded to, one of `BUCKETS` or `max_length`.

    It depends on the texts and the kind of device, not on what was compiled before, so
    that a file encoded in two runs gets the same numbers.

    Args:
      longest: the tokens of each batch's longest text, ascending.
      worth: tokens of padding that another length has to save.
    """
    allowed = [*sorted(b for b in BUCKETS if b < max_length), max_length]
    # Number of batches -> the lowest cost for that many, and their lengths.
    ways: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for tokens in allowed:
        end = bisect.bisect_right(longest, tokens)
        for start, (cost, lengths) in list(ways.items()):
            if start < end:
                cost += (end - start) * batch_size * tokens + worth
                way = cost, lengths + [tokens] * (end - start)
                ways[end] = min(way, ways.get(end, way))
    return ways[len(longest)][1]


def _to_matrix(
    view: View, terms: int, sent: Compact | None
) -> sparse.csr_matrix | TokenMatrix:
    if sent is not None:
        ids_BK, weights_BK, counts_B = jax.device_get(sent)
        if counts_B.max() <= ids_BK.shape[1]:
            here_BK = np.arange(ids_BK.shape[1]) < counts_B[:, None]
            starts = np.concatenate([[0], np.cumsum(counts_B)])
            terms_of_rows = weights_BK[here_BK], ids_BK[here_BK], starts
            # Columns that a vocabulary is padded with are zeros.
            return sparse.csr_matrix(terms_of_rows, shape=(len(counts_B), terms))
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
    views: dict[str, sparse.csr_matrix | TokenMatrix], *, apart: bool = False
) -> sparse.csr_matrix | TokenMatrix | Several:
    """All views side by side, [N, E + M]: pivot columns first, then source columns.

    Embeddings of tokens stay a `TokenMatrix`, or become part of `Several`. So does each
    of several views if they are to stay `apart`, as those that are not all sparse.
    """
    matrices = list(views.values())
    if apart or any(isinstance(matrix, TokenMatrix) for matrix in matrices):
        return matrices[0] if len(matrices) == 1 else Several(matrices)
    return sparse.hstack(list(views.values()), format="csr")
