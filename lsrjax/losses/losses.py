"""Losses: functions of scores or of representations, averaged over the batch.

To add one: write it here with its source, and add a line to `LOSSES`. A config names
one or a weighted sum of several, see `lsrjax.losses.objective`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsrjax.errors import InputError
from lsrjax.models.views import (
    Code,
    Vector,
    Views,
    bad_weights,
    score_all,
    score_groups,
)
from lsrjax.options import Options, no_effect, option


def alignment(raw_BV: jax.Array, teacher_raw_BV: jax.Array) -> jax.Array:
    """MILCO's sparse alignment: MSE of raw pooled logits where either is positive.

    `sum(mask * (r - t)^2) / max(sum(mask), 1)` with `mask = (r > 0) | (t > 0)`; one
    mean over the whole batch, no log, no relu (MILCO, ICLR 2026, stage 1). The frozen
    teacher reads the English text.
    """
    mask_BV = (raw_BV > 0) | (teacher_raw_BV > 0)
    squared_BV = jnp.where(mask_BV, jnp.square(raw_BV - teacher_raw_BV), 0.0)
    return squared_BV.sum() / jnp.maximum(mask_BV.sum(), 1)


def kl(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """KL(softmax(teacher / T) || softmax(student / T)) * T^2, mean over queries.

    The softmax is over each query's own group, without in-batch negatives (MILCO stage
    2); T^2 keeps the gradient's size (Hinton et al. 2015).
    """
    teacher_BG = jax.nn.log_softmax(teacher_scores_BG / temperature, axis=1)
    student_BG = jax.nn.log_softmax(scores_BG / temperature, axis=1)
    divergence_B = (jnp.exp(teacher_BG) * (teacher_BG - student_BG)).sum(axis=1)
    return divergence_B.mean() * temperature**2


def language_kl(
    scores_BG: jax.Array, languages: int, temperature: float = 1.0
) -> jax.Array:
    """Symmetric KL between a query's score distributions in two languages, times T^2.

    `(KL(p || q) + KL(q || p)) / 2` of softmaxes over the query's own group with
    temperature T; mean over pairs of different languages and over queries (after the
    language regularization of ColBERT-X, Yang et al. 2024). ColBERT-X also averages
    over the G documents and the diagonal of the pairs: its term is this one with the
    weight `(languages - 1) / ((languages + 1) G)`.

    Args:
      scores_BG: the student's: all queries in one language, all again in the next.
      languages: L, a divisor of B; >= 2.
      temperature: T.
    """
    log_BG = jax.nn.log_softmax(scores_BG / temperature, axis=1)
    log_LEG = log_BG.reshape(languages, -1, log_BG.shape[1])
    # KL(p || q) + KL(q || p) is the sum of (p - q) (log p - log q), every term >= 0.
    steps_LLEG = log_LEG[:, None] - log_LEG[None, :]
    p_LEG = jnp.exp(log_LEG)
    both_LLE = ((p_LEG[:, None] - p_LEG[None, :]) * steps_LLEG).sum(axis=-1)
    # Every pair is counted twice; the diagonal is zero.
    pairs = languages * (languages - 1)
    return both_LLE.mean(axis=-1).sum() / (2 * pairs) * temperature**2


# The pairs of documents that `margin_mse` compares.
MARGINS = ("positive", "all")


def margin_mse(
    scores_BG: jax.Array, teacher_scores_BG: jax.Array, margins: str = "positive"
) -> jax.Array:
    """Squared error of score differences, mean over pairs and queries.

    `((s_i - s_j) - (t_i - t_j))^2` (Hofstätter et al. 2020, arXiv 2010.02666), with the
    positive's scores first and G >= 2. The margins "positive" compare each negative
    with the positive, "all" every pair of the group.
    """
    G = scores_BG.shape[1]
    errors_BG = scores_BG - teacher_scores_BG
    if margins == "positive":
        return jnp.square(errors_BG[:, :1] - errors_BG[:, 1:]).mean()
    squared_BGG = jnp.square(errors_BG[:, :, None] - errors_BG[:, None, :])
    # Every pair is counted twice; the diagonal is zero.
    return squared_BGG.sum(axis=(1, 2)).mean() / (G * (G - 1))


def infonce(
    scores_BN: jax.Array,
    temperature: float = 1.0,
    excluded_BN: jax.Array | None = None,
    both_directions: bool = False,
) -> jax.Array:
    """Cross entropy of the positive among all documents of the batch.

    Document `b * N / B` is query b's positive, the rest of its group are hard
    negatives, the other groups in-batch negatives (van den Oord et al. 2018).

    Args:
      scores_BN: of every query and document.
      temperature: divides the scores.
      excluded_BN: documents that are not negatives of a query; positives are kept.
      both_directions: average with the cross entropy of a positive's query among all
        queries (as CLIP, Radford et al. 2021).
    """
    B, N = scores_BN.shape
    G = N // B
    logits_BN = scores_BN / temperature
    if excluded_BN is not None:
        positive_BN = jnp.arange(N)[None, :] == (jnp.arange(B) * G)[:, None]
        logits_BN = jnp.where(excluded_BN & ~positive_BN, -jnp.inf, logits_BN)
    logits_BB = logits_BN[:, ::G]  # every query and every positive
    positives_B = jnp.diagonal(logits_BB)
    loss = (jax.nn.logsumexp(logits_BN, axis=1) - positives_B).mean()
    if not both_directions:
        return loss
    backward = (jax.nn.logsumexp(logits_BB, axis=0) - positives_B).mean()
    return (loss + backward) / 2


def same_text(query_key_B2: jax.Array, document_key_BG2: jax.Array) -> jax.Array:
    """Documents that their text excludes as negatives of a query, [B, N] bool.

    They equal the query's positive, or belong to another example of the same query.
    Keys are the identities of texts, the positive's first.
    """
    B, G = document_key_BG2.shape[:2]
    documents_N2 = document_key_BG2.reshape(B * G, 2)
    same_document_BN = _equal(document_key_BG2[:, 0], documents_N2)
    same_query_BB = _equal(query_key_B2, query_key_B2) & ~jnp.eye(B, dtype=bool)
    return same_document_BN | jnp.repeat(same_query_BB, G, axis=1)


def _equal(left_n2, right_m2) -> jax.Array:
    equal_nm2 = left_n2[:, None, :] == right_m2[None, :, :]
    return equal_nm2[..., 0] & equal_nm2[..., 1]


def likely_relevant(teacher_scores_BG: jax.Array, margin: float) -> jax.Array:
    """Hard negatives that the teacher scores about as high as the positive, [B, N].

    Those above the positive's score minus the margin, each for its own query only
    (as the positive-aware mining of NV-Retriever, Moreira et al. 2024). The positive's
    scores are first.
    """
    B, G = teacher_scores_BG.shape
    above_BG = teacher_scores_BG > teacher_scores_BG[:, :1] - margin
    own_BB = jnp.eye(B, dtype=bool)
    return (own_BB[:, :, None] & above_BG[None]).reshape(B, B * G)


def _alignment_of_views(views, targets, options) -> dict[str, jax.Array]:
    (teacher,) = targets["teacher"].values()
    return {
        name: alignment(_pivot(views[name]).raw_BV, teacher.raw_BV)
        for name in ("translation", "english")
    }


def _pivot(views: Views) -> Vector:
    (vector,) = (view for view in views.values() if isinstance(view, Vector))
    return vector


def _kl_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    teacher_BG = options.teacher_scale * targets["scores"]
    return {"kl": kl(scores_BG, teacher_BG, options.temperature)}


def _language_kl_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    loss = language_kl(scores_BG, targets["languages"], options.temperature)
    return {"language_kl": loss}


def _margin_mse_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BG = score_groups(views["query"], views["document"])
    teacher_BG = options.teacher_scale * targets["scores"]
    return {"margin_mse": margin_mse(scores_BG, teacher_BG, options.margins)}


def _infonce_of_views(views, targets, options) -> dict[str, jax.Array]:
    scores_BN = score_all(views["query"], views["document"])
    excluded_BN = jnp.zeros(scores_BN.shape, bool)
    if options.mask_same_text:
        excluded_BN |= same_text(targets["query_key"], targets["document_key"])
    if options.false_negative_margin:
        margin = options.false_negative_margin
        excluded_BN |= likely_relevant(targets["scores"], margin)
    loss = infonce(scores_BN, options.temperature, excluded_BN, options.both_directions)
    return {"infonce": loss}


def _m3_of_views(views, targets, options) -> dict[str, jax.Array]:
    """Self-knowledge distillation over several views (BGE-M3, Chen et al. 2024).

    With n views: InfoNCE L of each view v and of the sum s of all, and the cross
    entropy L' of each view with the sum as teacher, all over the batch's documents:
    `((sum_v w_v L_v + L_s) / (n + 1) + (sum_v w_v L'_v) / n) / 2`.
    """
    queries, documents = views["query"], views["document"]
    excluded_BN = None
    if options.mask_same_text:
        excluded_BN = same_text(targets["query_key"], targets["document_key"])

    def loss(scores_BN):
        return infonce(scores_BN, options.temperature, excluded_BN)

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
        distilled = -(teacher_BN * student_BN).sum(axis=1).mean()
        parts[f"distill_{name}"] = weight * distilled / n / 2
    return parts


def _reconstruction_of_views(views, targets, options) -> dict[str, jax.Array]:
    """CSR's reconstruction loss of embeddings (Wen et al. 2025).

    `MSE(x, x_k) + MSE(x, x_4k) / 8 + auxiliary * MSE(e, e_dead) / Var(e)`, where e is
    the residual of the active latents; means over all texts, the variance over the
    texts of one name.
    """
    codes = [
        view
        for by_view in views.values()
        for view in by_view.values()
        if isinstance(view, Code)
    ]

    def mean(of: Callable[[Code], jax.Array]) -> jax.Array:
        return jnp.concatenate([of(code) for code in codes]).mean()

    def dead(code: Code) -> jax.Array:
        centered_BD = code.rest_BD - code.rest_BD.mean(axis=0)
        variance = jnp.square(centered_BD).mean()
        return code.error_dead_B1 / jnp.where(variance == 0, 1.0, variance)

    return {
        "reconstruction": mean(lambda code: code.error_B1),
        "reconstruction_4k": mean(lambda code: code.error_4k_B1) / 8,
        "reconstruction_dead": options.auxiliary * mean(dead),
    }


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """The options that every loss has; a loss may add its own."""

    weight: float = option(1.0, "in the sum of losses", above=0)

    def targets(self) -> tuple[str, ...]:
        """Additional `TARGETS` that the options require."""
        return ()


@dataclasses.dataclass(frozen=True)
class LanguageKLOptions(LossOptions):
    """Of `language_kl`."""

    temperature: float = option(1.0, "of both softmaxes", above=0)


@dataclasses.dataclass(frozen=True)
class KLOptions(LanguageKLOptions):
    """Of `kl`."""

    teacher_scale: float = option(1.0, "multiplies the teacher's scores", above=0)


@dataclasses.dataclass(frozen=True)
class MarginMSEOptions(LossOptions):
    """Of `margin_mse`."""

    teacher_scale: float = option(1.0, "multiplies the teacher's scores", above=0)
    margins: str = option(
        "positive",
        "of each negative to the positive: positive; of all pairs of a query's"
        " documents: all",
        choices=MARGINS,
    )

    def check_stage(self, stage, where: str) -> None:
        """Refuses a choice of margins if there is only one."""
        if self.margins != MARGINS[0] and stage.data.group_size == 2:
            because = "data.group_size is 2: a query has a single margin"
            said = no_effect("margins", self.margins, because)
            raise InputError(f"{where}.{said}")


@dataclasses.dataclass(frozen=True)
class _Contrast(LossOptions):
    temperature: float = option(1.0, "scores are divided by it", above=0)
    mask_same_text: bool = option(
        True,
        "no negatives are: documents equal to the positive in any language, and those"
        " of other examples of the same query",
    )

    def targets(self) -> tuple[str, ...]:
        return ("keys",) if self.mask_same_text else ()

    def check_stage(self, stage, where: str) -> None:
        if stage.batch_size * stage.data.group_size < 2:
            raise InputError(
                f"{where} tells a query's document from others, but batch_size and"
                " data.group_size are 1. Raise one of them."
            )


@dataclasses.dataclass(frozen=True)
class InfoNCEOptions(_Contrast):
    """Of `infonce`."""

    both_directions: bool = option(False, "also a document's query among all queries")
    false_negative_margin: float = option(
        0.0,
        "hard negatives that the teacher scores above the positive less this margin are"
        " no negatives either; 0: off",
        low=0,
    )

    def targets(self) -> tuple[str, ...]:
        """The texts' identities, and scores, if the options use them."""
        return super().targets() + ("scores",) * bool(self.false_negative_margin)

    def check_stage(self, stage, where: str) -> None:
        """Refuses a batch of one document, and several positives."""
        super().check_stage(stage, where)
        if stage.data.positives > 1:
            raise InputError(
                f"{where} takes the first document for the only positive, but"
                f" data.positives is {stage.data.positives}. Set it to 1."
            )


@dataclasses.dataclass(frozen=True)
class M3Options(_Contrast):
    """Of `m3`."""

    view_weights: tuple[float, ...] = option(
        (1.0, 0.1, 1.0),
        "of the losses of dense, terms, tokens",
        problem=bad_weights,
    )


@dataclasses.dataclass(frozen=True)
class ReconstructionOptions(LossOptions):
    """Of `reconstruction`."""

    auxiliary: float = option(0.1, "weight of what dead latents miss", low=0)


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`.

    Attributes:
      fn: `(views by text, targets, options) -> {part: scalar}`; the parts add up.
      texts: of a batch, that the student encodes for it.
      targets: that it compares them with, from `TARGETS`.
      Options: a dataclass of its options.
      needs: of a head, from `lsrjax.models.layers.GIVEN`.
    """

    fn: Callable[..., dict[str, jax.Array]]
    texts: tuple[str, ...]
    targets: tuple[str, ...] = ()
    Options: type[LossOptions] = LossOptions
    needs: str = ""


# The inputs of losses in addition to the student's texts.
TARGETS = {
    "views": "a teacher's representations of the English text",
    "scores": "a teacher's scores of each query's documents",
    "keys": "identities of the texts of queries and documents, [B, 2] and [B, G, 2]",
    "languages": "how many languages every query is in, an int; round robin only",
}
_PAIR, _RANKED = ("translation", "english"), ("query", "document")
LOSSES: dict[str, Loss] = {
    "alignment": Loss(_alignment_of_views, _PAIR, ("views",), needs="logits"),
    "kl": Loss(_kl_of_views, _RANKED, ("scores",), KLOptions),
    "language_kl": Loss(
        _language_kl_of_views, _RANKED, ("languages",), LanguageKLOptions
    ),
    "margin_mse": Loss(_margin_mse_of_views, _RANKED, ("scores",), MarginMSEOptions),
    "reconstruction": Loss(
        _reconstruction_of_views,
        _RANKED,
        (),
        ReconstructionOptions,
        needs="autoencoder",
    ),
    "m3": Loss(_m3_of_views, _RANKED, (), M3Options, needs="three views"),
    "infonce": Loss(_infonce_of_views, _RANKED, (), InfoNCEOptions),
}
