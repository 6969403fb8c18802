"""Initial weights fitted to the training data: translations, term weights."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from scipy import sparse

from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.initial import warm_start
from lsrjax.initial.shared_tokens import shared_tokens
from lsrjax.initial.start import Start
from lsrjax.initial.term_statistics import LENGTH
from lsrjax.models import retriever
from lsrjax.models.backbones.encoder import shapes_of
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone

_IDF_TEXTS = 4096  # sampled to fit LexEcho
# Fields of an encoder's config that do not affect what its layers compute.
_MAY_DIFFER = {
    *("family", "vocab_size", "pad_token_id", "max_positions", "type_vocab_size"),
    *("hidden_dropout", "attention_dropout", "embedding_dropout"),
    *("initializer_range", "layer_norm_eps", "head_bias", "classifier_pooling"),
}


def from_pivot(params: dict, pivot, start: Start, translated: bool) -> dict:
    """Parameters of a MILCO whose encoder starts from the English model's.

    Args:
      params: so far.
      pivot: the English `SavedModel`.
      start: the student; its source provides translations.
      translated: take the embeddings of each token's translations, not only of tokens
        that both vocabularies have.

    Raises:
      InputError: the models' sizes differ, or their vocabularies share nothing.
    """
    ours, theirs = start.spec.encoder, pivot.spec.encoder
    _check_alike(ours, theirs, pivot.name)
    tokenizer = TextTokenizer(start.tokenizer)
    english = TextTokenizer(pivot.tokenizer)
    shape = (ours.vocab_size, theirs.vocab_size)
    words = shared_tokens(tokenizer.vocabulary(), english.vocabulary(), shape)
    if not words.nnz:
        raise InputError(
            f"config.init.head.encoder: no token of {start.tokenizer} equals one of"
            f" {pivot.tokenizer}. Leave it empty."
        )
    if translated:
        table = start.translations
        unseen = np.diff(table.indptr) == 0
        words = table + sparse.diags_array(unseen.astype(float)) @ words
    return warm_start.from_pivot(
        params, ours, pivot.params["encoder"], theirs, words.tocsr()
    )


def _check_alike(ours: EncoderConfig, theirs: EncoderConfig, pivot: str) -> None:
    """Refuses an encoder that another's layers would compute something else in."""
    alike = backbone(ours.family).encoder is backbone(theirs.family).encoder
    if not alike or _layers(ours) != _layers(theirs):
        raise InputError(
            f"config.init.head.encoder: the student is a {ours.family}, and {pivot} is"
            f" a {theirs.family}, whose layers compute something else. Leave it empty,"
            f" or set config.model.family to {theirs.family!r}."
        )
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b and field.name not in _MAY_DIFFER:
            raise InputError(
                f"config.init.head.encoder: the student's {field.name} is {a}, that of"
                f" {pivot} is {b}; starting from its layers needs them equal."
            )


def _layers(config: EncoderConfig) -> set[str]:
    """The parameters of an encoder but its tables."""
    spec = retriever.RetrieverSpec.of("splade", config, tied=True)
    flat = trees.named(retriever.split(spec)[1]["encoder"])
    return {path for path in flat if not path.endswith("/embedding")}


def with_echo(params: dict, start: Start, scale: float) -> dict:
    """Parameters of a MILCO whose LexEcho starts at `scale * sqrt(idf)` of a token."""
    spec, idf_V = start.spec, start.idf_V
    tokenizer = TextTokenizer(start.tokenizer)
    length = min(LENGTH, spec.encoder.max_length)
    params = warm_start.with_idf_direction(params, idf_V)
    encoder = backbone(spec.encoder.family).encoder
    model = shapes_of(lambda: encoder(spec.encoder, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(model, nnx.Param)
    encode = jax.jit(
        lambda values, text: nnx.merge(graphdef, values)(text["ids"], text["mask"])
    )
    hidden, idf = [], []
    for batch in _batches(_sample(start.texts, _IDF_TEXTS).values(), 64):
        text = tokenizer.batch(batch, length, ())
        mask = text["mask"].astype(bool)
        hidden.append(np.asarray(encode(params["encoder"], text))[mask])
        idf.append(idf_V[text["ids"][mask]])
    return warm_start.echo_from_idf(
        params, np.concatenate(hidden), np.concatenate(idf), scale=scale
    )


def _sample(texts: dict[str, list[str]], count: int) -> dict[str, list[str]]:
    """About `count` texts, spread evenly over the languages and over each one."""
    share = max(count // max(len(texts), 1), 1)
    return {
        language: [
            t[i] for i in np.linspace(0, len(t) - 1, min(share, len(t)), dtype=int)
        ]
        for language, t in texts.items()
    }


def _batches(texts: Iterable[list[str]], size: int) -> Iterable[list[str]]:
    """Full batches, without the rest; fewer texts than `size` are one batch."""
    flat = [text for some in texts for text in some]
    for first in range(0, max(len(flat) - size, 0) + 1, size):
        yield flat[first : first + size]
