"""Losses equal those of torch, or a computation by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.losses.alignment import alignment
from lsrjax.losses.batch_distillation import batch_margin_mse
from lsrjax.losses.contrast import infonce, likely_relevant, same_text
from lsrjax.losses.distillation import MARGINS, kl, language_kl, margin_mse
from lsrjax.losses.loss import TARGETS, RankedOptions
from lsrjax.losses.objective import Objective
from lsrjax.losses.table import LOSSES
from lsrjax.models.masking import Predicted
from lsrjax.models.views import Bag, Code, Dense, Vector
from lsrjax.options import Chosen, names

B, G, V = 3, 4, 11


def normal(seed, *shape, scale=2.0):
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_kl_is_that_of_torch(temperature):
    scores, teacher = normal(0, B, G), normal(1, B, G)
    student = torch.tensor(scores, requires_grad=True)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(student / temperature, dim=1),
        torch.softmax(torch.tensor(teacher) / temperature, dim=1),
        reduction="batchmean",
    )
    expected = expected * temperature**2
    expected.backward()
    found, gradient = jax.value_and_grad(kl)(scores, teacher, temperature)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=1e-6)


def test_kl_of_equal_distributions_is_zero():
    scores = normal(0, B, G)
    shifted = scores + normal(1, B, 1)
    assert float(kl(scores, shifted)) == pytest.approx(0, abs=1e-6)


def language_kl_by_loops(scores, languages, temperature):
    """Over every query and pair of languages, in float64."""
    queries = len(scores) // languages
    found = []
    for query in range(queries):
        for i in range(languages):
            for j in range(i):
                pair = []
                for language in (i, j):
                    x = np.exp(scores[language * queries + query] / temperature)
                    pair.append(x / x.sum())
                p, q = pair
                there = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
                back = sum(b * np.log(b / a) for a, b in zip(p, q, strict=True))
                found.append((there + back) / 2)
    return np.mean(found) * temperature**2


@pytest.mark.parametrize(("languages", "temperature"), [(2, 1.0), (3, 0.7), (5, 3.0)])
def test_language_kl_by_loops(languages, temperature):
    scores = normal(6, 2 * languages, G).astype(np.float64)
    found, gradient = jax.value_and_grad(language_kl)(
        scores.astype(np.float32), languages, temperature
    )
    expected = language_kl_by_loops(scores, languages, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    for place in np.ndindex(scores.shape):
        step = np.zeros_like(scores)
        step[place] = 1e-5
        higher, lower = (
            language_kl_by_loops(scores + d, languages, temperature)
            for d in (step, -step)
        )
        slope = (higher - lower) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, abs=2e-6)


def test_equal_distributions_in_all_languages_cost_nothing():
    scores = np.tile(normal(0, 4, G), (3, 1)) + normal(1, 12, 1)
    value, gradient = jax.value_and_grad(language_kl)(scores, 3)
    assert 0 <= float(value) < 1e-10
    np.testing.assert_allclose(gradient, np.zeros_like(scores), atol=1e-6)
    # Queries are compared with themselves only: as many in one language differ.
    assert float(language_kl(scores[[0, 1, 1, 0]], 2)) > 0.1


def test_the_weight_of_colbert_x_gives_its_term():
    """As its training loop computes it: `nlang`, then queries, then documents."""
    languages, queries = 3, 2
    scores = torch.tensor(normal(7, languages * queries, G))
    lang_scores = torch.log_softmax(scores, dim=-1).view(languages, queries, G)
    flat = lang_scores.permute(1, 2, 0).flatten(0, 1)
    terms = []
    for i in range(languages):
        for j in range(i, languages):
            terms += [
                torch.nn.functional.kl_div(a, b, reduction="batchmean", log_target=True)
                for a, b in ((flat[:, i], flat[:, j]), (flat[:, j], flat[:, i]))
            ]
    weight = (languages - 1) / ((languages + 1) * G)
    found = weight * language_kl(scores.numpy(), languages)
    assert float(found) == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_margins_over_the_batch_by_loops():
    scores, teacher = normal(0, B, B * G), normal(1, B, B * G)
    errors = (scores - teacher).astype(np.float64)
    pairs = {
        "positive": lambda b: [(b * G, d) for d in range(B * G) if d != b * G],
        "all": lambda b: [(i, j) for i in range(B * G) for j in range(i)],
    }
    for margins in MARGINS:
        differences = [
            errors[b, i] - errors[b, j] for b in range(B) for i, j in pairs[margins](b)
        ]
        expected = np.square(differences).mean()
        found = batch_margin_mse(scores, teacher, margins)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_empty_vector_has_a_cosine_and_a_finite_gradient():
    loss = objective_of(name="embedding", distance="cosine")
    views, targets = inputs(loss)

    def of(weights_BV):
        query = {"pivot": Vector(weights_BV, weights_BV)}
        return total(loss, views | {"query": query}, targets)

    value, gradient = jax.value_and_grad(of)(jnp.zeros((B, V)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_teachers_own_vectors_have_no_distance(distance):
    loss = objective_of(name="embedding", distance=distance)
    views, _ = inputs(loss)
    value = total(loss, views, loss.of_teacher(views))
    assert float(value) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["batch_kl", "batch_margin_mse"])
def test_a_student_that_scores_as_its_teacher_has_nothing_to_learn(name):
    loss = objective_of(name=name)
    views, _ = inputs(loss)
    targets = loss.of_teacher(views)  # up to a number for each query
    targets["all_scores"] += normal(3, B, 1)
    value, gradients = jax.value_and_grad(
        lambda views: total(loss, views, targets), allow_int=True
    )(views)
    assert float(value) == pytest.approx(0, abs=1e-4)
    for by_view in gradients.values():
        np.testing.assert_allclose(by_view["pivot"].weights_BV, 0, atol=1e-3)


@pytest.mark.parametrize("name", ["batch_kl", "batch_margin_mse"])
def test_losses_over_the_batch_see_the_documents_of_other_queries(name):
    loss = objective_of(name=name)
    views, targets = inputs(loss)
    before = total(loss, views, targets)
    changed = targets["all_scores"].copy()
    changed[0, G + 1] += 1  # of the second query's group
    assert float(total(loss, views, {"all_scores": changed})) != float(before)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("group", [1, 4])
def test_infonce_is_the_cross_entropy_of_torch(group, temperature):
    scores = normal(2, B, B * group)
    logits = torch.tensor(scores, requires_grad=True)
    positives = torch.tensor([b * group for b in range(B)])
    expected = torch.nn.functional.cross_entropy(logits / temperature, positives)
    expected.backward()
    found, gradient = jax.value_and_grad(infonce)(scores, temperature)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("positives", [1, 2, 3])
def test_several_positives_are_that_many_cross_entropies_of_torch(positives, both):
    """Each positive with all that is no positive of its query."""
    scores = normal(2, B, B * G)
    excluded = np.random.default_rng(3).random((B, B * G)) < 0.3
    logits = torch.tensor(scores, requires_grad=True)
    found = []
    for b in range(B):
        own = [b * G + p for p in range(positives)]
        rest = [d for d in range(B * G) if d not in own and not excluded[b, d]]
        for d in own:
            row = logits[b, [d, *rest]][None] / 0.5
            found.append(torch.nn.functional.cross_entropy(row, torch.tensor([0])))
            if both:
                others = [c for c in range(B) if c != b and not excluded[c, d]]
                column = logits[[b, *others], d][None] / 0.5
                back = torch.nn.functional.cross_entropy(column, torch.tensor([0]))
                found[-1] = (found[-1] + back) / 2
    expected = torch.stack(found).mean()
    expected.backward()
    value, gradient = jax.value_and_grad(infonce)(
        scores, 0.5, jnp.asarray(excluded), both, positives
    )
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5)


def test_the_order_of_positives_does_not_matter_and_negatives_may_all_be_left_out():
    scores, positives = normal(4, B, B * G), 3
    order = np.arange(B * G).reshape(B, G)[:, [2, 0, 1, 3]].reshape(-1)
    first = infonce(scores, positives=positives)
    again = infonce(scores[:, order], positives=positives)
    assert float(again) == pytest.approx(float(first), rel=1e-6)
    value, gradient = jax.value_and_grad(infonce)(
        scores, excluded_BN=jnp.ones((B, B * G), bool), positives=positives
    )
    assert float(value) == 0 and not np.asarray(gradient).any()


def test_masks_know_all_positives():
    keys = jnp.asarray(np.random.default_rng(0).integers(0, 99, (B, G, 2)))
    keys = keys.at[2, 3].set(keys[0, 1])  # a negative equals the second positive
    query = jnp.arange(2 * B).reshape(B, 2)
    one, two = (np.asarray(same_text(query, keys, p)) for p in (1, 2))
    assert two[0, 2 * G + 3] and not one[0, 2 * G + 3]
    assert (two | one == two).all()
    teacher = jnp.array([[3.0, 1.0, 0.9, 0.5]])
    assert np.asarray(likely_relevant(teacher, 0.2)).tolist() == [[1, 0, 0, 0]]
    assert np.asarray(likely_relevant(teacher, 0.2, 2)).tolist() == [[1, 1, 1, 0]]


def test_alignment_by_hand():
    raw = jnp.array([[1.0, -2.0, 3.0], [-1.0, -1.0, 0.5]])
    teacher = jnp.array([[2.0, 1.0, -1.0], [-5.0, -1.0, 0.0]])
    # Either side is positive at (0, 0), (0, 1), (0, 2) and (1, 2).
    by_hand = (1 + 9 + 16 + 0.25) / 4
    loss, gradient = jax.value_and_grad(alignment)(raw, teacher)
    assert float(loss) == pytest.approx(by_hand)
    np.testing.assert_allclose(gradient, [[-0.5, -1.5, 2.0], [0, 0, 0.25]])
    # The same coordinates; of (0, 1) the student is 0, of (0, 2) the teacher.
    zero = functools.partial(alignment, below_zero="zero")
    loss, gradient = jax.value_and_grad(zero)(raw, teacher)
    assert float(loss) == pytest.approx((1 + 1 + 9 + 0.25) / 4)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 1.5], [0, 0, 0.25]])


def test_alignment_is_of_the_vocabulary_that_the_teacher_has():
    texts = ("translation", "english")
    pivot = {text: {"pivot": vector(seed, B)} for seed, text in enumerate(texts)}
    grams = {text: {"surface": vector(5 + seed, B)} for seed, text in enumerate(texts)}
    both = {text: pivot[text] | grams[text] for text in texts}
    targets = {"teacher": {"teacher": {"terms": vector(9, B)}}}
    loss = objective_of(name="alignment")
    assert loss(both, targets) == loss(pivot, targets)


def test_alignment_without_a_positive_coordinate_is_zero():
    raw, teacher = -jnp.ones((2, 3)), -2 * jnp.ones((2, 3))
    loss, gradient = jax.value_and_grad(alignment)(raw, teacher)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("group", [2, 5])
def test_margin_mse_by_loops(margins, group):
    scores, teacher = normal(3, B, group), normal(4, B, group)
    first = 1 if margins == "positive" else group
    squared = [
        ((s[i] - s[j]) - (t[i] - t[j])) ** 2
        for s, t in zip(scores, teacher, strict=True)
        for i in range(first)
        for j in range(i + 1, group)
    ]
    found, gradient = jax.value_and_grad(margin_mse)(scores, teacher, margins)
    assert float(found) == pytest.approx(np.mean(squared), rel=1e-5)
    # A query's scores may all grow by the same.
    np.testing.assert_allclose(gradient.sum(axis=1), np.zeros(B), atol=1e-5)
    shifted = margin_mse(teacher + normal(5, B, 1), teacher, margins)
    assert float(shifted) == pytest.approx(0, abs=1e-6)


def cross_entropy(scores, positive, allowed):
    """-log softmax of one score among itself and those allowed."""
    kept = [s for i, s in enumerate(scores) if allowed[i] or i == positive]
    return np.log(np.sum(np.exp(np.float64(kept)))) - scores[positive]


# Texts by a letter. The first and the third query are the same; the second query's
# positive is a hard negative of the first and, once more, of itself.
QUERIES = "qrq"
DOCUMENTS = ["abcd", "bbef", "ghij"]
NO_NEGATIVES = {
    # Its own positive, and the other example of the same query.
    0: [(0, 0), *((2, g) for g in range(G))],
    # Equal to its positive: in another group, and in its own.
    1: [(0, 1), (1, 0), (1, 1)],
    2: [(2, 0), *((0, g) for g in range(G))],
}


def keys(texts):
    # Either half of the identity alone is the same in several texts.
    return np.array([[ord(t) // 2, ord(t) % 2] for t in texts], np.int32)


KEYS = {
    "query_key": keys(QUERIES),
    "document_key": np.stack([keys(documents) for documents in DOCUMENTS]),
}


def test_equal_texts_are_no_negatives():
    excluded = np.asarray(same_text(KEYS["query_key"], KEYS["document_key"]))
    expected = np.zeros((B, B * G), bool)
    for query, places in NO_NEGATIVES.items():
        for group, place in places:
            expected[query, group * G + place] = True
    np.testing.assert_array_equal(excluded, expected)


def test_likely_relevant_negatives_are_those_of_the_own_group():
    teacher = np.array([[5, 4.5, 3, 6], [0, 0, -1, -3], [1, 1, 1, -9]], np.float32)
    excluded = np.asarray(likely_relevant(teacher, 1.0)).reshape(B, B, G)
    for query in range(B):
        for group in range(B):
            above = teacher[query] > teacher[query, 0] - 1
            expected = above if query == group else np.zeros(G, bool)
            np.testing.assert_array_equal(excluded[query, group], expected)


@pytest.mark.parametrize("both", [False, True])
def test_infonce_with_excluded_documents_by_loops(both):
    scores, temperature = normal(2, B, B * G), 0.7
    excluded = np.random.default_rng(3).random((B, B * G)) < 0.4
    excluded[:, 0] = True  # a positive counts for its query all the same
    logits = scores / temperature
    forward = [cross_entropy(logits[b], b * G, ~excluded[b]) for b in range(B)]
    columns = [b * G for b in range(B)]
    backward = [
        cross_entropy(logits[:, b * G], b, ~excluded[:, b * G]) for b in range(B)
    ]
    expected = np.mean(forward + backward) if both else np.mean(forward)
    found, gradient = jax.value_and_grad(infonce)(scores, temperature, excluded, both)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(gradient).all()
    negatives = excluded.copy()
    negatives[range(B), columns] = False
    assert not np.asarray(gradient)[negatives].any()


def test_a_query_without_negatives_costs_nothing():
    scores = normal(2, B, B * G)
    value, gradient = jax.value_and_grad(infonce)(scores, 1.0, scores == scores, True)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(scores))


def vector(seed, count):
    raw_BV = jnp.asarray(normal(seed, count, V))
    return Vector(jnp.log1p(jax.nn.relu(raw_BV)), raw_BV)


def bag(seed, count):
    rng = np.random.default_rng(seed)
    ids_BK = rng.integers(0, V, (count, 5))
    return Bag(jnp.asarray(ids_BK), jnp.asarray(rng.random((count, 5))), V)


# Every loss with every option, and a sum of all that rank.
OPTIONS = [
    {"name": "alignment"},
    {"name": "alignment", "below_zero": "zero"},
    {"name": "kl", "temperature": 0.7, "teacher_scale": 2.0},
    {"name": "language_kl", "temperature": 0.7},
    *({"name": "margin_mse", "margins": margins} for margins in MARGINS),
    {"name": "margin_mse", "teacher_scale": 2.0},
    {"name": "infonce", "mask_same_text": False},
    {"name": "infonce", "temperature": 0.5, "both_directions": True},
    {"name": "infonce", "false_negative_margin": 0.5},
    {"name": "mann_whitney", "temperature": 0.5, "mask_same_text": False},
    {"name": "passage_centric", "temperature": 0.5, "mask_same_text": False},
    {
        "name": "listnet",
        "temperature": 0.5,
        "grade_temperature": 2.0,
        "in_batch": True,
    },
    {"name": "wasserstein", "temperature": 0.5, "grade_temperature": 2.0},
    {"name": "cosent", "temperature": 0.5, "similarity": "score"},
    {"name": "angle", "temperature": 0.5},
    {"mann_whitney": {}, "passage_centric": {}, "listnet": {}, "cosent": {}},
    {"kl": {"weight": 0.5}, "margin_mse": {"weight": 0.05}, "infonce": {}},
    {"name": "batch_kl", "temperature": 0.7, "teacher_scale": 2.0},
    *({"name": "batch_margin_mse", "margins": margins} for margins in MARGINS),
    {"name": "batch_margin_mse", "teacher_scale": 2.0},
    {"name": "embedding"},
    {"name": "embedding", "distance": "cosine"},
    *(
        {"name": name, "prefixes": (7, 3), "prefix_weights": (0.5, 2.0)}
        for name, loss in LOSSES.items()
        if issubclass(loss.Options, RankedOptions)
    ),
    {"name": "reconstruction", "auxiliary": 0.3},
    {"name": "m3", "view_weights": (1.0, 0.5)},
    {
        "name": "m3",
        "view_weights": (1.0, 0.5),
        "temperature": 0.5,
        "mask_same_text": False,
    },
    {"name": "bag_of_words"},
    {"name": "mlm", "rate": 0.3, "hidden": 0.5, "random": 0.2},
]


# Of the texts' tokens, those above 1 are words; one has none.
IDS = np.array([[0, 3, 5, 3], [0, 9, 1, 1], [0, 1, 1, 0]])


def code(seed, count):
    base = vector(seed, count)
    one, four, dead = map(jnp.asarray, np.abs(normal(seed + 50, 3, count, 1)))
    rest = jnp.asarray(normal(seed + 60, count, 4))
    return Code(base.weights_BV, base.raw_BV, one, four, rest, dead)


def objective_of(**options):
    """A loss by name with its options, or a sum of several."""
    several = {options.pop("name"): options} if "name" in options else options
    return Objective(
        tuple(
            Chosen(name, LOSSES[name], LOSSES[name].Options(**of))
            for name, of in several.items()
        )
    )


def inputs(loss):
    """Views by text, of both kinds where the loss takes both, and targets."""
    views, ranks = {}, "document" in loss.texts
    for seed, text in enumerate(loss.texts):
        count = B * G if text == "document" else B
        views[text] = {"pivot": vector(seed, count)}
        if "reconstruction" in loss.weights:
            views[text] = {"latents": code(seed, count)}
        elif "bag_of_words" in loss.weights:
            views[text] = {"terms": vector(seed, count)}
        elif "angle" in loss.weights:
            embedding_BD = jnp.asarray(normal(30 + seed, count, V))
            views[text] = {"dense": Dense(embedding_BD)}
        elif any(getattr(one.options, "prefixes", ()) for one in loss.losses):
            embedding = jnp.asarray(normal(seed, count, V))
            views[text] = {"dense": Dense(embedding, unit=True)}
        elif ranks:
            views[text]["source"] = bag(20 + seed, count)
    targets = {
        "views": {
            "teacher": {
                text: {"pivot": vector(9, len(views[text]["pivot"].weights_BV))}
                for text in loss.texts
            }
            if ranks and "pivot" in views["query"]
            else {"teacher": {"pivot": vector(9, B)}}
        },
        "all_scores": {"all_scores": normal(7, B, B * G)},
        "scores": {"scores": normal(8, B, G)},
        "keys": KEYS,
        "positives": {"positives": 1},
        "languages": {"languages": B},
        "words": {
            "words": {
                "query": (IDS[:B], IDS[:B] > 1),
                "document": (np.tile(IDS, (G, 1)), np.tile(IDS, (G, 1)) > 1),
            },
            "vocabulary": V - 1,
        },
        "masked": {
            "masked": {
                text: Predicted(normal(30 + seed, B) ** 2, np.arange(B) + seed)
                for seed, text in enumerate(loss.texts)
            }
        },
    }
    assert targets.keys() == TARGETS.keys()
    return views, {k: v for name in loss.targets for k, v in targets[name].items()}


def total(loss, views, targets):
    parts = loss(views, targets)
    assert {part.shape for part in parts.values()} == {()}
    return sum(parts.values())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_of_each_query_have_their_mean_as_the_loss(options):
    loss = objective_of(**options)
    views, targets = inputs(loss)
    parts, means = loss.by_query(views, targets), loss(views, targets)
    by_query = {LOSSES[name].by_query for name in loss.weights}
    assert {part.shape for part in parts.values()} == {
        (B,) if one else () for one in by_query
    }
    for name, part in parts.items():
        assert float(means[name]) == pytest.approx(float(part.mean()), rel=1e-6)


def test_all_losses_and_options_are_tested():
    alone = [options for options in OPTIONS if "name" in options]
    assert {options["name"] for options in alone} == set(LOSSES)
    changed = {(o["name"], field) for o in alone for field in o if field != "name"}
    declared = {
        (name, field)
        for name, loss in LOSSES.items()
        for field in names(loss.Options)
        if field != "weight"
    }
    assert changed == declared


def test_mlm_is_a_mean_over_the_tokens_of_all_texts():
    loss = objective_of(mlm={"weight": 0.5})
    _, targets = inputs(loss)
    query, document = targets["masked"].values()
    errors = np.concatenate([query.error_B, document.error_B])
    expected = 0.5 * errors.sum() / (0 + 1 + 2 + 1 + 2 + 3)
    assert float(total(loss, {}, targets)) == pytest.approx(expected, rel=1e-6)
    none = {name: Predicted(np.zeros(B), np.zeros(B)) for name in loss.texts}
    assert total(loss, {}, {"masked": none}) == 0


def test_bag_of_words_by_hand():
    loss = objective_of(bag_of_words={})
    views, targets = inputs(loss)
    found = []
    for text, (ids, words) in targets["words"].items():
        raw = np.asarray(views[text]["terms"].raw_BV, np.float64)
        for z, own, kept in zip(raw, ids, words, strict=True):
            # The last column is padding.
            log = z[:-1] - np.log(np.exp(z[:-1]).sum())
            distinct = sorted({*own[kept].tolist()})
            found += [-log[distinct].mean()] if distinct else []
    assert len(found) == (B - 1) * (1 + G)
    assert float(total(loss, views, targets)) == pytest.approx(np.mean(found), rel=1e-5)

    def moved(change):
        other = {t: {"terms": change(v["terms"])} for t, v in views.items()}
        return float(total(loss, other, targets))

    # A shift of all logits, and what stands in the padding, change nothing.
    shifted = moved(lambda v: dataclasses.replace(v, raw_BV=v.raw_BV + 3))
    assert shifted == pytest.approx(np.mean(found), rel=1e-5)
    padded = moved(lambda v: dataclasses.replace(v, raw_BV=v.raw_BV.at[:, -1].set(9)))
    assert padded == pytest.approx(np.mean(found), rel=1e-5)


# Of `mlm`, the model itself gives what is compared.
VIEWED = [options for options in OPTIONS if options.get("name") != "mlm"]


@pytest.mark.parametrize("options", VIEWED, ids=str)
def test_every_loss_reaches_every_text_and_view(options):
    loss = objective_of(**options)
    views, targets = inputs(loss)
    value, gradients = jax.jit(
        jax.value_and_grad(lambda views: total(loss, views, targets), allow_int=True)
    )(views)
    assert np.isfinite(value) and value > 0
    for text in loss.texts:
        for name, view in gradients[text].items():
            if name == "source" and set(loss.weights) == {"embedding"}:
                continue  # it compares the first view alone
            weights = view.weights_BK if isinstance(view, Bag) else None
            leaves = jax.tree.leaves(view) if weights is None else [weights]
            assert all(np.isfinite(leaf).all() for leaf in leaves)
            assert any(np.asarray(leaf).any() for leaf in leaves)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_loss_ignores_the_order_of_the_examples(options):
    loss = objective_of(**options)
    order = np.array([2, 0, 1])

    def reordered(leaf):
        if isinstance(leaf, int):
            return leaf
        # Rows of a view belong to the examples in turn, as do those of a target.
        by_example = leaf.reshape(B, -1, *leaf.shape[1:])
        return by_example[order].reshape(leaf.shape)

    views, targets = inputs(loss)
    before = loss(views, targets)
    moved, others = jax.tree.map(reordered, (views, targets))
    if "all_scores" in others:  # by documents, too
        columns = np.arange(B * G).reshape(B, G)[order].reshape(-1)
        others["all_scores"] = others["all_scores"][:, columns]
    after = loss(moved, others)
    for part, value in before.items():
        assert float(after[part]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_loss_ignores_padding(options):
    """Terms that no text has, and empty places in a bag."""
    loss = objective_of(**options)

    def padded(view):
        if isinstance(view, Code):
            wide = ((0, 0), (0, 3))
            weights, raw = (jnp.pad(x, wide) for x in (view.weights_BV, view.raw_BV))
            return dataclasses.replace(view, weights_BV=weights, raw_BV=raw)
        if isinstance(view, Vector):
            return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 3))), view)
        if isinstance(view, Dense):
            return view  # an embedding is never padded
        wide = [(0, 0), (2, 1)]
        ids = jnp.pad(view.ids_BK, wide, constant_values=4)
        return Bag(ids, jnp.pad(view.weights_BK, wide), view.size + 3)

    def is_view(x):
        return isinstance(x, Vector | Bag | Dense)

    views, targets = inputs(loss)
    before = loss(views, targets)
    targets = {
        name: jax.tree.map(padded, value, is_leaf=is_view)
        if name == "teacher"
        else value
        for name, value in targets.items()
    }
    after = loss(jax.tree.map(padded, views, is_leaf=is_view), targets)
    for part, value in before.items():
        assert float(after[part]) == pytest.approx(float(value), rel=1e-6)


def test_reconstruction_is_the_mean_over_all_texts():
    loss = objective_of(name="reconstruction", auxiliary=0.3)
    views, targets = inputs(loss)
    views["source"] = {"terms": vector(3, B)}  # no code, hence left out
    codes = [views["query"]["latents"], views["document"]["latents"]]
    means = [
        np.concatenate([np.asarray(getattr(code, field)) for code in codes]).mean()
        for field in ("error_B1", "error_4k_B1")
    ]
    relative = [
        np.asarray(code.error_dead_B1) / np.asarray(code.rest_BD).var(axis=0).mean()
        for code in codes
    ]
    means.append(np.concatenate(relative).mean())
    found = [float(part) for part in loss(views, targets).values()]
    np.testing.assert_allclose(found, np.array(means) * [1, 1 / 8, 0.3], rtol=1e-6)


def test_a_sum_is_the_weighted_sum_of_its_parts():
    summed = objective_of(kl={"weight": 0.5}, margin_mse={"weight": 0.05}, infonce={})
    views, targets = inputs(summed)
    parts = summed(views, targets)
    assert list(parts) == ["kl", "margin_mse", "infonce"]
    for name, weight in {"kl": 0.5, "margin_mse": 0.05, "infonce": 1}.items():
        (alone,) = objective_of(name=name)(views, targets).values()
        assert float(parts[name]) == pytest.approx(weight * float(alone), rel=1e-6)
    assert summed.texts == ("query", "document")
    assert summed.targets == {"scores", "keys", "positives"}


def test_prefixes_are_embeddings_of_their_own():
    weights, sizes = (0.5, 2.0), (7, 3)
    loss = objective_of(kl={"prefixes": sizes, "prefix_weights": weights}, infonce={})
    views, targets = inputs(loss)
    parts = loss(views, targets)
    assert list(parts) == ["kl", "kl_7", "kl_3", "infonce"]
    alone = objective_of(name="kl")
    assert float(parts["kl"]) == float(alone(views, targets)["kl"])
    for size, weight in zip(sizes, weights, strict=True):
        short = {}
        for text, of in views.items():
            x = np.asarray(of["dense"].embedding_BD)[:, :size]
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            short[text] = {"dense": Dense(jnp.asarray(x))}
        expected = weight * float(alone(short, targets)["kl"])
        assert float(parts[f"kl_{size}"]) == pytest.approx(expected, rel=1e-5)


def test_prefixes_of_embeddings_of_any_length_keep_theirs():
    whole = Dense(jnp.asarray(normal(3, B, V)))
    np.testing.assert_array_equal(
        whole.prefix(4).embedding_BD, whole.embedding_BD[:, :4]
    )


def test_targets_are_asked_for_where_an_option_is_on():
    plain = objective_of(name="infonce", mask_same_text=False)
    assert plain.targets == {"positives"}
    margin = objective_of(name="infonce", mask_same_text=False, false_negative_margin=1)
    assert margin.targets == {"scores", "positives"}
    for options in OPTIONS:
        loss = objective_of(**options)
        shapes = {k: v.shape for k, v in loss.arrays(B, G).items()}
        _, targets = inputs(loss)
        # Those that the step adds are in no batch.
        by_step = ("teacher", "all_scores", "languages", "positives")
        by_step += ("words", "vocabulary", "masked")
        made = {k: v for k, v in targets.items() if k not in by_step}
        assert shapes == {k: v.shape for k, v in made.items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mse": {}}, "config.loss is 'mse'; known: 'alignment', 'kl', "),
        ({}, "config.loss names no loss. Known: 'alignment', 'kl'"),
        ("kl", "config.loss is 'kl'; give a dict of names, each with its options"),
        ({"kl": {}, "mse": {"weight": 2}}, "config.loss is 'mse'; known: "),
        ({"kl": 1}, "config.loss.kl is 1; give its options by name"),
        ({"kl": {}, "temprature": 1}, "Did you mean config.loss.kl.temperature?"),
        ({"kl": {"weight": ""}}, "config.loss.kl.weight is ''; it must be a number"),
        ({"kl": {"weight": 0}}, "config.loss.kl.weight is 0.0; it must be > 0"),
        ({"kl": {"weight": -1}}, "config.loss.kl.weight is -1.0; it must be > 0"),
        ({"kl": {"weight": np.inf}}, "config.loss.kl.weight is inf; give a finite"),
        ({"kl": {"weight": np.nan}}, "config.loss.kl.weight is nan; give a finite"),
        ({"kl": {"auxiliary": 1}}, "is no option of 'kl'; 'reconstruction' have it"),
        ({"kl": {"temprature": 1}}, "the nearest is config.loss.kl.temperature"),
        ({"m3": {"view_weights": (1, 2)}}, "give three numbers >= 0"),
        (
            {"kl": {}, "alignment": {}},
            "kl reads the texts query and document, but alignment",
        ),
    ],
)
def test_mistakes_say_what_to_do(config, message):
    with pytest.raises(InputError) as error:
        objective.of(config)
    assert message in str(error.value)


def test_m3_is_the_mean_of_contrast_and_distillation():
    loss = objective_of(
        name="m3",
        view_weights=(1.0, 0.5),
        temperature=2.0,
        mask_same_text=False,
    )
    views, targets = inputs(loss)
    scores = [
        np.asarray(views["query"][name].score_all(views["document"][name])) / 2
        for name in ("pivot", "source")
    ]

    def log_softmax(x):
        return x - np.log(np.exp(x - x.max()).sum(axis=1, keepdims=True)) - x.max()

    def contrast(x):
        return -np.mean([log_softmax(x)[b, b * G] for b in range(B)])

    joint = sum(scores)
    teacher = np.exp(log_softmax(joint))
    first = (contrast(scores[0]) + 0.5 * contrast(scores[1]) + contrast(joint)) / 3
    distilled = [-(teacher * log_softmax(x)).sum(axis=1).mean() for x in scores]
    expected = (first + (distilled[0] + 0.5 * distilled[1]) / 2) / 2
    assert float(total(loss, views, targets)) == pytest.approx(expected, rel=1e-5)


def test_m3_does_not_teach_the_sum_of_its_views():
    loss = objective_of(name="m3", view_weights=(1.0, 0.5), mask_same_text=False)
    views, targets = inputs(loss)

    def scores_of(weights_BV):
        query = views["query"] | {"pivot": Vector(weights_BV, weights_BV)}
        return {name: query[name].score_all(views["document"][name]) for name in query}

    teacher = jax.nn.softmax(
        sum(scores_of(views["query"]["pivot"].weights_BV).values())
    )

    def by_hand(weights_BV):
        student = jax.nn.log_softmax(scores_of(weights_BV)["pivot"])
        return -(teacher * student).sum(axis=1).mean() / 2 / 2

    def found(weights_BV):
        query = views["query"] | {"pivot": Vector(weights_BV, weights_BV)}
        parts = loss(views | {"query": query}, targets)
        return sum(part for name, part in parts.items() if name.startswith("distill"))

    weights_BV = views["query"]["pivot"].weights_BV
    expected = jax.grad(by_hand)(weights_BV)
    np.testing.assert_allclose(jax.grad(found)(weights_BV), expected, atol=1e-5)
