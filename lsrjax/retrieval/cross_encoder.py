"""Scores pairs of texts with a cross-encoder."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.data.prompted_pairs import PromptedPairs
from lsrjax.data.tokenization import TextTokenizer, pad
from lsrjax.distributed import sharding
from lsrjax.models.backbones.encoder import shapes_of
from lsrjax.models.backbones.table import backbone
from lsrjax.models.cross_encoder import CrossEncoder, CrossEncoderSpec
from lsrjax.retrieval.encode_texts import BUCKETS

# Pairs whose tokens are in memory at once.
_CHUNK = 8192


class PairScorer:
    """Scores queries with documents, each pair encoded together."""

    def __init__(
        self,
        spec: CrossEncoderSpec,
        params: dict,
        tokenizer: TextTokenizer,
        query_length: int,
        document_length: int,
        *,
        batch_size: int = 64,
        dtype: str = "float32",
    ):
        """A scorer with its weights.

        A pair has at most `query_length + document_length` tokens, including special
        ones, and no more than the encoder's limit. A query gets `query_length` of them,
        but at most three quarters; its document is truncated to the rest
        ("only_second"), as FlagEmbedding does for the rerankers of BGE. A prompt's own
        tokens come in addition.

        Batches have at least one pair on each device.
        """
        self._params = params
        self._tokenizer = tokenizer
        self._types = backbone(spec.encoder.family).pairs_have_types
        limit = spec.encoder.max_length
        self._length = min(query_length + document_length, limit)
        self._query_length = min(query_length, self._length * 3 // 4)
        self._prompted = None
        if spec.prompt:
            self._prompted = PromptedPairs(
                tokenizer, spec.prompt, self._query_length, document_length, limit
            )
            self._length = self._prompted.max_length
        self._mesh = jax.sharding.get_mesh()
        devices = sharding.axis_size(sharding.DATA)
        self._batch_size = math.ceil(batch_size / devices) * devices
        model = shapes_of(
            lambda: CrossEncoder(spec, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
        )
        graphdef, _ = nnx.split(model, nnx.Param)
        everywhere = None if self._mesh.empty else sharding.replicated(self._mesh)
        self._apply = jax.jit(
            lambda params, pairs: nnx.merge(graphdef, params)(
                pairs["ids"], pairs["mask"], pairs.get("types")
            ),
            out_shardings=everywhere,
        )

    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The scores [P] float32 of P pairs of a query and a document, as logits."""
        scores = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            scores[start : start + len(chunk)] = self._chunk(chunk)
        return scores

    def _chunk(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        if self._prompted is None:
            rows = self._tokenizer.pairs(pairs, self._query_length, self._length)
        else:
            rows = [(ids, [0] * len(ids)) for ids in self._prompted.ids(pairs)]
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        scores = np.empty(len(pairs), np.float32)
        for start in range(0, len(rows), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            # A short batch is filled up, so that its shape need not be compiled.
            filled = chosen + [chosen[-1]] * (self._batch_size - len(chosen))
            batch = self._padded([rows[i] for i in filled])
            found = np.asarray(self._apply(self._params, self._on_devices(batch)))
            scores[chosen] = found[: len(chosen)]
        return scores

    def _padded(self, rows) -> dict[str, np.ndarray]:
        ids, types = zip(*rows, strict=True)
        batch = pad(ids, self._tokenizer.pad_id, self._length, BUCKETS)
        if self._types:
            batch["types"] = pad(types, 0, self._length, BUCKETS)["ids"]
        return batch

    def _on_devices(self, batch: dict) -> dict:
        if self._mesh.empty:
            return batch
        rows = range(self._mesh.shape[sharding.DATA])
        return sharding.to_global(batch, self._mesh, rows)
