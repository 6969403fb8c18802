"""Initial weights from prior knowledge, in place of noise.

Each function returns a changed copy of a nested dict of parameters.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig

# GELU is nearly the identity well above zero, and a LayerNorm or the bias of the next
# layer easily removes a shift of all dimensions.
_SHIFT = 3.0


def _updated(params: dict, path: str, value) -> dict:
    first, _, rest = path.partition("/")
    head = int(first) if first.isdigit() else first
    changed = dict(params)
    if rest:
        changed[head] = _updated(params[head], rest, value)
    else:
        old = params[head]
        if jnp.shape(old) != jnp.shape(value):
            raise ValueError(f"{path} is {jnp.shape(old)}, not {jnp.shape(value)}")
        changed[head] = jnp.asarray(value, jnp.float32)
    return changed


def overlaid(params: dict, weights: dict, name: str) -> dict:
    """`params` overlaid with `weights` of the model `name`.

    Raises:
      InputError: names or shapes that do not fit; lists both.
    """
    found, wanted = trees.shapes(weights), trees.shapes(params)
    wanted = {path: shape for path, shape in wanted.items() if path in found}
    if wrong := trees.differences(found, wanted, (name, "config")):
        raise InputError(
            f"The weights of {name} do not fit the model of the config:\n"
            + "\n".join(wrong[:20])
        )
    return merged(params, weights)


def merged(params, weights):
    """`params` with the leaves of `weights`, a part of the same tree."""
    if not isinstance(weights, dict):
        return jnp.asarray(weights)
    # A part without parameters is in neither.
    some = [key for key in weights if jax.tree.leaves(weights[key])]
    return params | {key: merged(params[key], weights[key]) for key in some}


def inverse_document_frequency(
    documents: Sequence[Iterable[int]], vocab_size: int
) -> np.ndarray:
    """ln(1 + (N - n + .5) / (n + .5)) of each term, [V], for N documents of token ids.

    The idf of BM25 (Robertson 1994).
    """
    n = np.zeros(vocab_size)
    for ids in documents:
        n[list(set(ids))] += 1
    return np.log1p((len(documents) - n + 0.5) / (n + 0.5)).astype(np.float32)


def lexical(params: dict, idf_V: np.ndarray, seed: int, *, spread: float = 0.1) -> dict:
    """A SPLADE that starts as a weighted bag of the text's own words.

    Word embeddings are random directions, the head's transform is the identity, and the
    decoder is tied, so a token's own logit is about `spread * D`, and every other is
    about normal with deviation `spread * sqrt(D)`. The bias moves the first to
    `expm1(w)`, with w proportional to the square root of the term's idf (so that a
    match adds about idf to a score), and the others far below zero, where relu cuts
    them. A random head collapses to all zeros or to dense vectors instead.

    `params` are of a tied SPLADE; `spread` is the word embeddings' standard deviation.
    """
    V, D = params["encoder"]["embeddings"]["word"]["embedding"].shape
    words_VD = spread * jax.random.normal(jax.random.key(seed), (V, D))
    own_V = spread * jnp.sqrt(D) * jnp.linalg.norm(words_VD / spread, axis=1)
    highest = spread * (D - 6 * D**0.5)  # six deviations of the noise below own_V
    weight_V = jnp.log1p(max(highest, 1.0)) * jnp.sqrt(idf_V / idf_V.max())
    params = _updated(params, "encoder/embeddings/word/embedding", words_VD)
    params = identity(params, "head/mlm/transform/dense")
    return _updated(params, "head/mlm/bias", jnp.expm1(weight_V) - own_V)


def identity(params: dict, layer: str) -> dict:
    """Sets a dense layer whose output after GELU is its input plus a constant."""
    node = params
    for key in layer.split("/"):
        node = node[key]
    size = node["kernel"].shape[0]
    params = _updated(params, f"{layer}/kernel", jnp.eye(size))
    return _updated(params, f"{layer}/bias", jnp.full(size, _SHIFT))


def from_pivot(
    params: dict,
    config: EncoderConfig,
    pivot_params: dict,
    pivot_config: EncoderConfig,
    words: sparse.csr_matrix,
) -> dict:
    """A MILCO whose encoder starts as the English model under its head.

    All but the tables of tokens and positions is the English model's, and the connector
    is the identity up to a constant, which the head's first bias removes. A token's
    embedding is the mean of the English embeddings weighted by `words`, scaled to their
    mean length; tokens without weights keep their random direction.

    `params` are of a MILCO whose encoder is computed like the English model's, of the
    same sizes; `words` has [V, English V] weights of English tokens for each token.
    """
    own, english = params["encoder"]["embeddings"], pivot_params["embeddings"]
    embeddings = dict(english)
    if "position" in own:
        embeddings = _positions(own, config, english, pivot_config)
    words_VD = _mean_words(own, english, words)
    embeddings["word"] = {"embedding": jnp.asarray(words_VD)}
    encoder = {**pivot_params, "embeddings": embeddings}
    params = {**params, "encoder": merged(params["encoder"], encoder)}
    params = identity(params, "head/connector")
    dense = params["head"]["mlm"]["transform"]["dense"]
    bias_D = dense["bias"] - _SHIFT * dense["kernel"].sum(axis=0)
    return _updated(params, "head/mlm/transform/dense/bias", bias_D)


def _mean_words(own: dict, english: dict, words: sparse.csr_matrix) -> np.ndarray:
    english_VD = np.asarray(english["word"]["embedding"])
    random_VD = np.asarray(own["word"]["embedding"])
    known_V1 = (np.diff(words.indptr) > 0)[:, None]
    words_VD = np.where(known_V1, words @ english_VD, random_VD)
    length = np.linalg.norm(english_VD, axis=1).mean()
    words_VD *= length / np.linalg.norm(words_VD, axis=1, keepdims=True)
    return words_VD


def _positions(
    own: dict, config: EncoderConfig, english: dict, pivot_config: EncoderConfig
) -> dict:
    """The tables of an encoder like BERT, with positions and types of the English."""
    embeddings = {**own, "norm": english["norm"]}
    positions = np.array(own["position"]["embedding"])
    first = config.max_positions - config.max_length
    first_english = pivot_config.max_positions - pivot_config.max_length
    count = min(config.max_length, pivot_config.max_length)
    rows = slice(first_english, first_english + count)
    positions[first : first + count] = np.asarray(english["position"]["embedding"])[
        rows
    ]
    if "token_type" in english:
        theirs = np.asarray(english["token_type"]["embedding"])
        if "token_type" in own:
            types = np.array(own["token_type"]["embedding"])
            types[: len(theirs)] = theirs[: len(types)]
            embeddings["token_type"] = {"embedding": jnp.asarray(types)}
        else:  # one type for every token can be added to its position
            positions += theirs[0]
    elif "token_type" in own:
        types = own["token_type"]["embedding"]
        embeddings["token_type"] = {"embedding": jnp.zeros_like(types)}
    embeddings["position"] = {"embedding": jnp.asarray(positions)}
    return embeddings


def with_idf_direction(params: dict, idf_V: np.ndarray, strength: float = 2.0) -> dict:
    """Word embeddings in which one direction encodes how rare the token is.

    A linear echo of D hidden dimensions cannot distinguish the rare of thousands of
    tokens from the common ones by their random directions. Along the direction in which
    embeddings vary least, and the least is lost, each is set to its token's
    standardised square root of idf; LayerNorm and residuals carry it to the last layer.

    `strength` is the deviation along the direction, relative to other directions.
    """
    words_VD = np.asarray(params["encoder"]["embeddings"]["word"]["embedding"])
    mean_D = words_VD.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(words_VD.T))
    u_D = directions[:, 0] * np.sign(directions[:, 0].sum())
    z_V = np.sqrt(idf_V)
    z_V = (z_V - z_V.mean()) / z_V.std()
    target_V = strength * np.sqrt(variances.mean()) * z_V + mean_D @ u_D
    words_VD = words_VD + np.outer(target_V - words_VD @ u_D, u_D)
    return _updated(params, "encoder/embeddings/word/embedding", words_VD)


def echo_from_idf(
    params: dict,
    hidden_ND: np.ndarray,
    idf_N: np.ndarray,
    *,
    scale: float,
    ridge: float = 1e-3,
) -> dict:
    """A LexEcho fitted by ridge regression to `scale * sqrt(idf)` of each token.

    Args:
      params: of a MILCO with LexEcho.
      hidden_ND: hidden states of N tokens of sample texts.
      idf_N: inverse document frequency of each of these tokens.
      scale: factor.
      ridge: penalty, relative to the mean variance of the hidden states.
    """
    target_N = scale * np.sqrt(idf_N)
    mean_D, mean = hidden_ND.mean(axis=0), target_N.mean()
    x_ND = (hidden_ND - mean_D).astype(np.float64)
    gram_DD = x_ND.T @ x_ND / len(x_ND)
    gram_DD += ridge * np.trace(gram_DD) / len(gram_DD) * np.eye(len(gram_DD))
    kernel_D = np.linalg.solve(gram_DD, x_ND.T @ (target_N - mean) / len(x_ND))
    params = _updated(params, "head/echo/kernel", kernel_D)
    return _updated(params, "head/echo/bias", mean - mean_D @ kernel_D)
