"""Losses that tell a query's document from all others of the batch."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp

from lsrjax.data.batching.mixing import group_sizes
from lsrjax.errors import InputError
from lsrjax.losses.loss import RANKED, Loss, LossOptions, RankedOptions
from lsrjax.models.views import bad_weights, score_all
from lsrjax.options import option


def infonce(
    scores_BN: jax.Array,
    temperature: float = 1.0,
    excluded_BN: jax.Array | None = None,
    both_directions: bool = False,
    positives: int = 1,
) -> jax.Array:
    """Cross entropy of each positive among the negatives of the batch.

    The first P documents from `b * N / B` on are query b's positives, the rest of its
    group are hard negatives, the other groups in-batch negatives (van den Oord et al.
    2018). A query's loss is the mean over its positives, each in a softmax of its own,
    without the other positives, so that they do not compete.

    Args:
      scores_BN: of every query and document.
      temperature: divides the scores.
      excluded_BN: documents that are not negatives of a query; positives are kept.
      both_directions: average with the cross entropy of a positive's query among all
        queries (as CLIP, Radford et al. 2021).
      positives: P, of a query; < N / B, or 1.
    """
    return infonce_by_query(
        scores_BN, temperature, excluded_BN, both_directions, positives
    ).mean()


def infonce_by_query(
    scores_BN: jax.Array,
    temperature: float,
    excluded_BN: jax.Array | None,
    both_directions: bool,
    positives: int,
) -> jax.Array:
    """`infonce` of each query, [B]."""
    B, N = scores_BN.shape
    G = N // B
    logits_BN = scores_BN / temperature
    place_N = jnp.arange(N) % G
    own_BN = jnp.repeat(jnp.eye(B, dtype=bool), G, axis=1)
    left_out_BN = own_BN & (place_N < positives)
    if excluded_BN is not None:
        left_out_BN |= excluded_BN

    def of_positive(place: int) -> jax.Array:
        positive_BN = own_BN & (place_N == place)
        kept_BN = jnp.where(left_out_BN & ~positive_BN, -jnp.inf, logits_BN)
        kept_BB = kept_BN[:, place::G]  # every query and every positive of this place
        positives_B = jnp.diagonal(kept_BB)
        loss_B = jax.nn.logsumexp(kept_BN, axis=1) - positives_B
        if not both_directions:
            return loss_B
        backward_B = jax.nn.logsumexp(kept_BB, axis=0) - positives_B
        return (loss_B + backward_B) / 2

    return sum(map(of_positive, range(positives)), jnp.zeros(B)) / positives


def same_text(
    query_key_B2: jax.Array, document_key_BG2: jax.Array, positives: int = 1
) -> jax.Array:
    """Documents that their text excludes as negatives of a query, [B, N] bool.

    They equal one of the query's positives, or belong to another example of the same
    query. Keys are the identities of texts, the positives' first.
    """
    B, G = document_key_BG2.shape[:2]
    documents_N2 = document_key_BG2.reshape(B * G, 2)
    same_document_BN = functools.reduce(
        operator.or_,
        (_equal(document_key_BG2[:, p], documents_N2) for p in range(positives)),
    )
    same_query_BB = _equal(query_key_B2, query_key_B2) & ~jnp.eye(B, dtype=bool)
    return same_document_BN | jnp.repeat(same_query_BB, G, axis=1)


def _equal(left_n2, right_m2) -> jax.Array:
    equal_nm2 = left_n2[:, None, :] == right_m2[None, :, :]
    return equal_nm2[..., 0] & equal_nm2[..., 1]


def likely_relevant(
    teacher_scores_BG: jax.Array, margin: float, positives: int = 1
) -> jax.Array:
    """Hard negatives that the teacher scores about as high as a positive, [B, N].

    Those above the lowest positive's score minus the margin, each for its own query
    only (as the positive-aware mining of NV-Retriever, Moreira et al. 2024). The
    positives' scores are first.
    """
    B, G = teacher_scores_BG.shape
    lowest_B1 = teacher_scores_BG[:, :positives].min(axis=1, keepdims=True)
    above_BG = teacher_scores_BG > lowest_B1 - margin
    own_BB = jnp.eye(B, dtype=bool)
    return (own_BB[:, :, None] & above_BG[None]).reshape(B, B * G)


def check_several(stage, where: str) -> None:
    """Refuses a batch of one document."""
    if stage.batch_size * min(group_sizes(stage.data)) < 2:
        raise InputError(
            f"{where} compares the documents of a batch, but batch_size and"
            " data.group_size are 1. Raise one of them."
        )


@dataclasses.dataclass(frozen=True)
class Contrast(LossOptions):
    """Of losses over all documents of a batch."""

    temperature: float = option(1.0, "scores are divided by it", above=0)
    mask_same_text: bool = option(
        True,
        "no negatives are: documents equal to a positive in any language, and those of"
        " other examples of the same query",
    )

    def targets(self) -> tuple[str, ...]:
        """The texts' identities, if equal texts are masked."""
        return ("keys",) if self.mask_same_text else ()

    def check_stage(self, stage, where: str) -> None:
        """Refuses a batch of one document."""
        check_several(stage, where)


@dataclasses.dataclass(frozen=True)
class InfoNCEOptions(RankedOptions, Contrast):
    """Of `infonce`."""

    both_directions: bool = option(False, "also a document's query among all queries")
    false_negative_margin: float = option(
        0.0,
        "hard negatives that the teacher scores above the positive (of several, the"
        " lowest) less this margin are no negatives either; 0: off",
        low=0,
    )

    def targets(self) -> tuple[str, ...]:
        """The texts' identities, and scores, if the options use them."""
        return super().targets() + ("scores",) * bool(self.false_negative_margin)


@dataclasses.dataclass(frozen=True)
class OnePositive(RankedOptions, Contrast):
    """Of losses for which a query's first document alone is relevant."""

    def check_stage(self, stage, where: str) -> None:
        """Refuses a batch of one document, and several positives."""
        super().check_stage(stage, where)
        if stage.data.positives > 1:
            raise InputError(
                f"{where} takes the first document for the only positive, but"
                f" data.positives is {stage.data.positives}. Set it to 1."
            )


@dataclasses.dataclass(frozen=True)
class M3Options(Contrast):
    """Of `m3`."""

    view_weights: tuple[float, ...] = option(
        (1.0, 0.1, 1.0),
        "of the losses of dense, terms, tokens",
        problem=bad_weights,
    )


def _infonce_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BN = score_all(views["query"], views["document"])
    excluded_BN = jnp.zeros(scores_BN.shape, bool)
    positives = targets["positives"]
    if options.mask_same_text:
        keys = targets["query_key"], targets["document_key"]
        excluded_BN |= same_text(*keys, positives)
    if options.false_negative_margin:
        margin = options.false_negative_margin
        excluded_BN |= likely_relevant(targets["scores"], margin, positives)
    both = options.both_directions
    loss_B = infonce_by_query(
        scores_BN, options.temperature, excluded_BN, both, positives
    )
    return {"infonce": loss_B}


def _m3_of_views(views, targets, options) -> dict[str, jax.Array]:
    """Self-knowledge distillation over several views (BGE-M3, Chen et al. 2024).

    With n views: InfoNCE L of each view v and of the sum s of all, and the cross
    entropy L' of each view with the sum as teacher, all over the batch's documents:
    `((sum_v w_v L_v + L_s) / (n + 1) + (sum_v w_v L'_v) / n) / 2`.
    """
    queries, documents = views["query"], views["document"]
    excluded_BN, positives = None, targets["positives"]
    if options.mask_same_text:
        keys = targets["query_key"], targets["document_key"]
        excluded_BN = same_text(*keys, positives)

    def loss(scores_BN):
        return infonce_by_query(
            scores_BN, options.temperature, excluded_BN, False, positives
        )

    joint_BN = score_all(queries, documents)
    teacher_BN = jax.nn.softmax(
        jax.lax.stop_gradient(joint_BN) / options.temperature, axis=1
    )
    n = len(queries)
    parts = {"infonce_all": loss(joint_BN) / (n + 1) / 2}
    weights = zip(queries.items(), options.view_weights, strict=True)
    for (name, query), weight in weights:
        scores_BN = query.score_all(documents[name])
        parts[f"infonce_{name}"] = weight * loss(scores_BN) / (n + 1) / 2
        student_BN = jax.nn.log_softmax(scores_BN / options.temperature, axis=1)
        distilled = -(teacher_BN * student_BN).sum(axis=1)
        parts[f"distill_{name}"] = weight * distilled / n / 2
    return parts


INFONCE = Loss(_infonce_of_views, RANKED, ("positives",), InfoNCEOptions, by_query=True)
M3 = Loss(
    _m3_of_views,
    RANKED,
    ("positives",),
    M3Options,
    needs="three views",
    by_query=True,
)
