"""Heads with embeddings: of the text, as a sparse code, of each token."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsrjax.models.backbones.classifiers import last_of_tokens
from lsrjax.models.layers import Fixed, Head
from lsrjax.models.texts import Texts
from lsrjax.models.views import Code, Dense, MultiVector, Views, normalized
from lsrjax.options import Options, option


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions(Options):
    """The options of heads with embeddings."""

    embedding_size: int = option(
        0, "of an embedding; 0: that of the hidden states", low=0, high=2**16
    )
    normalize: bool = option(True, "embeddings have length 1")


@dataclasses.dataclass(frozen=True)
class DenseOptions(EmbeddingOptions):
    """Of `DenseHead`."""

    pooling: str = option(
        "cls",
        "the state of the first token, the mean, or the state of the last token",
        choices=("cls", "mean", "last"),
    )


@dataclasses.dataclass(frozen=True)
class CSROptions(DenseOptions):
    """Of `CSRHead`.

    Attributes:
      theirs: names in sentence-transformers' SparseAutoEncoder, with ours.
    """

    theirs: ClassVar = {
        "hidden_dim": "latents",
        "k": "active_latents",
        "k_aux": "revived_latents",
        "dead_threshold": "dead_after",
    }

    latents: int = option(4096, "of the autoencoder", above=0, high=2**24)
    active_latents: int = option(64, "of a text", above=0)
    revived_latents: int = option(
        512, "dead ones that learn from a text", above=0, when="autoencoder loss"
    )
    dead_after: int = option(
        30, "steps in which no text activates a latent", low=0, when="autoencoder loss"
    )

    @property
    def k(self) -> int:
        """Active latents of a text."""
        return self.active_latents

    def problem(self) -> str | None:
        """Refuses more active latents than there are latents."""
        if self.active_latents <= self.latents:
            return None
        return (
            f"active_latents is {self.active_latents}, more than the {self.latents} of"
            " latents."
        )


@dataclasses.dataclass(frozen=True)
class ColbertOptions(EmbeddingOptions):
    """Of `ColbertHead`."""

    expand_queries: bool = option(False, "fill queries up with the mask token")
    skip_punctuation: bool = option(False, "no embeddings of it in documents")
    expand_id: int = option(
        -1, "what queries are filled up with to their maximal length", fact=True
    )
    skip_ids: tuple[int, ...] = option(
        (), "tokens of documents without an embedding", fact=True
    )


def _projection(
    spec, dtype, rngs: nnx.Rngs, *, use_bias: bool = False
) -> nnx.Linear | None:
    """Projects to the embedding size; None: use hidden states."""
    if not spec.options.embedding_size:
        return None
    return nnx.Linear(
        spec.encoder.hidden_size,
        spec.options.embedding_size,
        use_bias=use_bias,
        kernel_init=nnx.initializers.normal(spec.encoder.initializer_range),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def _size(spec) -> int:
    return spec.options.embedding_size or spec.encoder.hidden_size


def _shown_by(params) -> dict:
    """The size of embeddings that are projected."""
    if "projection" not in params:
        return {}
    return {"embedding_size": params["projection"]["kernel"].shape[1]}


class DenseHead(Head):
    """One embedding of the text; one view, `dense`.

    The state of the first token ("cls"), the mean over all tokens or the state of the
    last one ("last", of causal encoders), depending on the options projected and scaled
    to length 1.
    """

    Options = DenseOptions
    gives = ("embedding", "one vector")
    pools = True
    sparse = False

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`dense`, of the embedding's size."""
        return {"dense": _size(spec)}

    @staticmethod
    def shown_by(params) -> dict:
        """The embedding's size."""
        return _shown_by(params)

    @staticmethod
    def shortened(spec, params, size):
        """Projected to its first numbers, before they are scaled to length 1."""
        if "projection" in params:
            kernel_DE = params["projection"]["kernel"]
        else:
            kernel_DE = np.eye(spec.encoder.hidden_size, dtype=np.float32)
        projection = {"kernel": np.ascontiguousarray(kernel_DE[:, :size])}
        return spec.replaced(embedding_size=size), params | {"projection": projection}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        self.projection = _projection(spec, dtype, rngs)
        self.pooling = spec.options.pooling
        self.normalize = spec.options.normalize
        self.includes_prompt = spec.includes_prompt

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `dense` view."""
        x_BD = texts.together(map(self._pooled, texts.split(hidden_TD), texts.mask))
        if self.projection is not None:
            x_BD = self.projection(x_BD).astype(jnp.float32)
        if self.normalize:
            x_BD = normalized(x_BD)
        return {"dense": Dense(x_BD, unit=self.normalize)}

    def _pooled(self, hidden_BLD, mask_BL) -> jax.Array:
        keep_BL1 = mask_BL[:, :, None]
        # A selection, since a padded state may be NaN.
        hidden_BLD = jnp.where(keep_BL1, hidden_BLD.astype(jnp.float32), 0.0)
        if self.pooling == "cls":
            if self.includes_prompt:
                return hidden_BLD[:, 0]
            first_B11 = jnp.argmax(mask_BL, axis=1)[:, None, None]
            return jnp.take_along_axis(hidden_BLD, first_B11, axis=1)[:, 0]
        if self.pooling == "last":
            return last_of_tokens(hidden_BLD, mask_BL)  # zeros without tokens
        return hidden_BLD.sum(axis=1) / jnp.maximum(keep_BL1.sum(axis=1), 1)


class Count(Fixed):
    """Counted by the training step."""


class Autoencoder(nnx.Module):
    """A sparse autoencoder with k active latents and a tied decoder.

    `z = top_k(relu((x - c) W + b))` and `x' = z W' + c` (Gao et al. 2024; for retrieval
    CSR, Wen et al. 2025). A latent is dead if no text of a batch has activated it for
    `dead_after` steps; `idle` counts these steps, see `after_step`.
    """

    def __init__(self, options: CSROptions, size: int, *, rngs: nnx.Rngs):
        bound = size**-0.5  # torch.nn.Linear's default initialisation
        self.kernel = nnx.Param(
            jax.random.uniform(
                rngs.params(), (size, options.latents), minval=-bound, maxval=bound
            )
        )
        self.bias = nnx.Param(jnp.zeros(options.latents))
        self.center = nnx.Param(jnp.zeros(size))
        self.idle = Count(jnp.zeros(options.latents))
        self.active = options.active_latents
        self.revived = options.revived_latents
        self.dead_after = options.dead_after

    def __call__(self, x_BD) -> Code:
        """The code of embeddings, and its reconstruction errors."""
        center_D, kernel_DV = self.center[...], self.kernel[...]
        raw_BV = (x_BD - center_D) @ kernel_DV + self.bias[...]

        def decoded(weights_BV):
            return weights_BV @ kernel_DV.T

        weights_BV = _largest(raw_BV, self.active)
        left_BD = x_BD - center_D - decoded(weights_BV)
        more_BV = _largest(raw_BV, 4 * self.active)
        error_4k_B1 = _mean_square(x_BD - center_D - decoded(more_BV))
        dead_V = jax.lax.stop_gradient(self.idle[...]) >= self.dead_after
        lowest = jnp.finfo(raw_BV.dtype).min
        revived_BV = _largest(jnp.where(dead_V, raw_BV, lowest), self.revived)
        # Dead latents learn the residual of the active ones, which get no gradient.
        rest_BD = x_BD - jax.lax.stop_gradient(decoded(weights_BV))
        missed_B1 = _mean_square(rest_BD - decoded(revived_BV) - center_D)
        return Code(
            weights_BV,
            raw_BV,
            _mean_square(left_BD),
            error_4k_B1,
            rest_BD,
            jnp.where(dead_V.any(), missed_B1, 0.0),
        )


def _largest(raw_BV, count: int) -> jax.Array:
    """Relu of each row's `count` largest entries, 0 elsewhere."""
    count = min(count, raw_BV.shape[1])
    least_B1 = jax.lax.top_k(jax.lax.stop_gradient(raw_BV), count)[0][:, -1:]
    # NaN compares false, and stays.
    return jnp.where(raw_BV < least_B1, 0.0, jax.nn.relu(raw_BV))


def _mean_square(x_BD) -> jax.Array:
    return jnp.square(x_BD).mean(axis=1, keepdims=True)


class CSRHead(Head):
    """A sparse code of the dense embedding (CSR, Wen et al. 2025); view `latents`."""

    Options = CSROptions
    gives = ("autoencoder", "one vector")
    pools = True

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`latents`, of the autoencoder."""
        return {"latents": spec.options.latents}

    @staticmethod
    def shown_by(params) -> dict:
        """The embedding's size, and the number of latents."""
        latents = params["autoencoder"]["kernel"].shape[1]
        return _shown_by(params.get("dense", {})) | {"latents": latents}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        self.dense = DenseHead(spec, dtype=dtype, rngs=rngs)
        self.autoencoder = Autoencoder(spec.options, _size(spec), rngs=rngs)

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `latents` view."""
        dense = self.dense(hidden_TD, texts, word_embeddings_VD)["dense"]
        assert isinstance(dense, Dense)
        return {"latents": self.autoencoder(dense.embedding_BD)}


def fired(views: dict[str, Views]) -> dict[str, jax.Array]:
    """The number of texts that activate each latent, [V], by text; {} without CSR."""
    return {
        text: (view.weights_BV > 0).sum(axis=0)
        for text, by_view in views.items()
        for view in by_view.values()
        if isinstance(view, Code)
    }


def after_step(params: dict, fired_V: jax.Array | None) -> dict:
    """Updates the number of steps that a tower's latents have been idle.

    `fired_V` is the number of texts in the batch that activate each latent, or None.
    """
    if fired_V is None:
        return params
    autoencoder = params["head"]["autoencoder"]
    idle_V = jnp.where(fired_V > 0, 0.0, autoencoder["idle"] + 1)
    head = params["head"] | {"autoencoder": autoencoder | {"idle": idle_V}}
    return params | {"head": head}


class ColbertHead(Head):
    """An embedding of each token; one view, `tokens` (Khattab and Zaharia 2020).

    Tokens of the option `skip_ids` (punctuation) only count in queries.

    Attributes:
      biased: whether a projection has a bias.
    """

    Options = ColbertOptions
    biased = False
    sparse = False

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`tokens`, of the embedding's size."""
        return {"tokens": _size(spec)}

    @staticmethod
    def shown_by(params) -> dict:
        """The embedding's size."""
        return _shown_by(params)

    @staticmethod
    def sized(spec) -> dict:
        """The embedding's size as an option, spelled out."""
        return {"embedding_size": _size(spec)}

    @staticmethod
    def expand_id(options) -> int:
        """The mask token's id, if queries are expanded."""
        return options.expand_id

    @staticmethod
    def settled(options, tokenizer):
        """Sets the ids of the mask token and of punctuation."""
        return dataclasses.replace(
            options,
            expand_id=tokenizer.mask_id if options.expand_queries else -1,
            skip_ids=tokenizer.punctuation_ids if options.skip_punctuation else (),
        )

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        self.projection = _projection(spec, dtype, rngs, use_bias=self.biased)
        self.skip_ids = spec.options.skip_ids
        self.normalize = spec.options.normalize

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `tokens` view."""
        queries = texts.query or [None] * len(texts.ids)
        kept = [*map(self._kept, texts.ids, texts.mask, queries)]
        x_TD = hidden_TD
        if self.projection is not None:
            x_TD = self.projection(x_TD)
        keep_T = texts.join(kept)
        x_TD = jnp.where(keep_T[:, None], x_TD.astype(jnp.float32), 0.0)
        if self.normalize:
            x_TD = normalized(x_TD)
        x_BLD = texts.padded(texts.split(x_TD))
        return {"tokens": MultiVector(x_BLD, texts.padded(kept))}

    def _kept(self, ids_BL, mask_BL, query_B) -> jax.Array:
        """Which tokens have an embedding, [B, L]."""
        if not self.skip_ids:
            return mask_BL
        skipped_BL = jnp.isin(ids_BL, jnp.asarray(self.skip_ids))
        if query_B is not None:
            skipped_BL &= ~query_B[:, None]
        return mask_BL & ~skipped_BL


class BiasedColbertHead(ColbertHead):
    """A `ColbertHead` whose projection has a bias, as a part of BGE-M3."""

    biased = True
