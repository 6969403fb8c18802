"""Regularizers and schedules against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.losses.regularizers import (
    REGULARIZERS,
    SCHEDULES,
    active_terms,
    anti_zero,
    by_lambda,
    flops,
    idf_flops,
    joint_flops,
    l1,
    masked_flops,
    of,
    penalties,
)
from lsrjax.models.views import Bag, Vector
from lsrjax.options import names

WEIGHTS = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
VECTOR = Vector(WEIGHTS, WEIGHTS)
# The same vectors; the first text's term 2 comes in two parts, and 1 is padding.
BAG = Bag(
    jnp.array([[2, 0, 2, 1], [0, 1, 1, 1]]),
    jnp.array([[0.5, 1, 1.5, 0], [3, 0, 0, 0]]),
    3,
)


@pytest.mark.parametrize("view", [VECTOR, BAG])
def test_by_hand(view):
    assert float(l1(view)) == pytest.approx((3 + 3) / 2)
    assert float(flops(view)) == pytest.approx(2**2 + 0**2 + 1**2)
    assert float(anti_zero(view)) == pytest.approx(1 / (1 + 3**2))


@pytest.mark.parametrize("view", [VECTOR, BAG])
def test_masked_flops_by_hand(view):
    """The texts have two terms and one."""
    assert float(masked_flops(view, 0)) == pytest.approx(float(flops(view)))
    # The mean is over both texts all the same.
    assert float(masked_flops(view, 1)) == pytest.approx(0.5**2 + 1**2)
    assert float(masked_flops(view, 2)) == 0


def test_masked_flops_leaves_short_texts_alone():
    def penalty(weights):
        return masked_flops(Vector(weights, weights), 1)

    gradient = jax.grad(penalty)(WEIGHTS)
    np.testing.assert_allclose(gradient[1], np.zeros(3))
    np.testing.assert_allclose(gradient[0, [0, 2]], [0.5, 1.0])


@pytest.mark.parametrize("view", [VECTOR, BAG])
def test_idf_flops_by_hand(view):
    expected = (2 / 0.5) ** 2 + (1 / 4) ** 2
    assert float(idf_flops(view, IDF)) == pytest.approx(expected)
    # A term of all texts does not outweigh the others without bound.
    assert float(idf_flops(view, np.array([0, 1, 4], np.float32))) < 401


def test_the_idf_of_a_penalty_is_that_of_its_view():
    config = of("idf_flops")
    lambdas = {"document": 1.0, "source_document": 1.0}
    idf = {"pivot": IDF, "source": 2 * IDF}
    found = penalties(config, views_of("pivot", "source"), lambdas, idf)
    pivot, source = (2 / 0.5) ** 2 + (1 / 4) ** 2, 2**2 + (1 / 8) ** 2
    expected = {
        "idf_flops_document_pivot": pivot,
        "idf_flops_document_source": source,
    }
    assert {n: float(v) for n, v in found.items()} == pytest.approx(expected)


def test_a_lambda_of_two_views_is_steered_by_the_vocabulary():
    # N-grams; in this order from JAX, which sorts keys.
    views = {"document": {"pivot": VECTOR, "surface": Vector(jnp.ones((2, 9)), None)}}
    active = jax.tree.map(lambda x: x, active_terms(views))
    assert len(active) == 2
    found = by_lambda(active)
    assert found == {"document": VECTOR.active_terms().mean()}


@pytest.mark.parametrize("view", [VECTOR, BAG])
def test_joint_flops_by_hand(view):
    query = Vector(jnp.array([[4.0, 5.0, 0.5]]), jnp.zeros((1, 3)))
    assert float(joint_flops(query, VECTOR)) == pytest.approx(4 * 2 + 5 * 0 + 0.5 * 1)
    assert float(joint_flops(view, view)) == pytest.approx(float(flops(view)))


def test_joint_flops_is_the_mean_score_of_all_pairs():
    rng = np.random.default_rng(0)
    query, document = (
        Vector(jnp.asarray(w), jnp.asarray(w))
        for w in (rng.random((3, 7)), rng.random((5, 7)))
    )
    expected = query.score_all(document).mean()
    assert float(joint_flops(query, document)) == pytest.approx(float(expected))


def test_anti_zero_lifts_small_vectors_most_and_bears_empty_ones():
    def value(weights):
        return anti_zero(Vector(weights, weights))

    weights = jnp.array([[0.0, 0.0], [0.5, 0.5], [4.0, 4.0]])
    found, gradient = jax.value_and_grad(value)(weights)
    assert float(found) == pytest.approx((1 + 1 / 2 + 1 / 65) / 3)
    assert np.isfinite(gradient).all()
    assert gradient[1, 0] < gradient[2, 0] < 0


def test_flops_prefers_terms_spread_over_the_vocabulary():
    """Equal L1, fewer shared posting lists."""
    spread = Vector(jnp.eye(4), jnp.eye(4))
    same = jnp.zeros((4, 4)).at[:, 0].set(1.0)
    same = Vector(same, same)
    assert float(l1(spread)) == float(l1(same)) == 1
    assert float(flops(spread)) == pytest.approx(0.25)
    assert float(flops(same)) == pytest.approx(1)


OPTIONS = {"threshold": 0}
IDF = np.array([0.5, 2.0, 4.0], np.float32)


def value_of(name, view):
    """Of an entry; a joint one is given the same texts twice."""
    entry = REGULARIZERS[name]
    declared = names(entry.Options)
    options = {name: value for name, value in OPTIONS.items() if name in declared}
    options |= {"idf": IDF} if entry.idf else {}
    return entry.fn(*[view] * (1 + entry.joint), **options)


@pytest.mark.parametrize("view", [VECTOR, BAG])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_pushes_active_weights_down(name, view):
    field = "weights_BV" if isinstance(view, Vector) else "weights_BK"

    def penalty(weights):
        leaves = {**vars(view), field: weights}
        return value_of(name, type(view)(**leaves))

    weights = getattr(view, field)
    value, gradient = jax.value_and_grad(penalty)(weights)
    assert value.shape == () and value > 0
    assert np.isfinite(gradient).all() and (gradient >= 0).all()
    assert (gradient[weights > 0] > 0).all()
    assert float(penalty(jnp.zeros_like(weights))) == 0


@pytest.mark.parametrize("view", [VECTOR, BAG])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_no_regularizer_sees_padding_or_the_order_of_texts(name, view):
    expected = float(value_of(name, view))
    swapped = jax.tree.map(lambda leaf: leaf[::-1], view)
    assert float(value_of(name, swapped)) == pytest.approx(expected)
    if isinstance(view, Vector):  # zeros behind the last term
        wide = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 2))), view)
    else:
        wide = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (1, 2))), view)
    assert float(value_of(name, wide)) == pytest.approx(expected)


def views_of(*names):
    """A query and two documents with a vocabulary view and a source view."""
    query = jax.tree.map(lambda leaf: leaf[:1], (VECTOR, BAG))
    by_text = {"query": query, "document": (VECTOR, BAG)}
    return {text: dict(zip(names, by_text[text], strict=False)) for text in by_text}


def test_penalties_go_by_text_and_view():
    config = of("l1")
    views = views_of("pivot", "source")
    lambdas = {"query": 2.0, "source_document": 0.5}
    found = penalties(config, views, lambdas)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"l1_query_pivot": 2.0 * 3, "l1_document_source": 0.5 * 3}
    )
    assert penalties(config, views, {}) == {}


def test_a_joint_penalty_goes_by_view_with_the_documents_lambda():
    config = of("joint_flops")
    lambdas = {"document": 2.0, "source_document": 0.5}
    found = penalties(config, views_of("pivot", "source"), lambdas)
    # The query is the first text, (1, 0, 2); the documents' mean is (2, 0, 1).
    expected = {
        "joint_flops_document_pivot": 2.0 * 4,
        "joint_flops_document_source": 0.5 * 4,
    }
    assert {n: float(v) for n, v in found.items()} == pytest.approx(expected)


def test_anti_zero_is_of_vocabulary_views_and_has_a_weight_of_its_own():
    config = of({"name": "l1", "anti_zero": 3.0})
    found = penalties(config, views_of("pivot", "source"), {})
    assert {n: float(v) for n, v in found.items()} == pytest.approx(
        {"anti_zero_query_pivot": 0.3, "anti_zero_document_pivot": 0.3}
    )


def test_active_terms_by_field_and_view():
    found = active_terms(views_of("pivot", "source"))
    assert {names: float(number) for names, number in found.items()} == {
        ("query", "query_pivot"): 2.0,
        ("source_query", "query_source"): 2.0,
        ("document", "document_pivot"): 1.5,
        ("source_document", "document_source"): 1.5,
    }


@pytest.mark.parametrize(
    ("name", "start", "half"),
    [("constant", 1, 1), ("linear", 0, 0.5), ("quadratic", 0, 0.25)],
)
def test_schedules(name, start, half):
    schedule = SCHEDULES[name]
    steps = {option: 10 for option in names(schedule.Options)}
    values = [float(schedule.fn(jnp.int32(step), **steps)) for step in (0, 5, 10, 25)]
    assert values == pytest.approx([start, half, 1, 1])


def test_all_schedules_are_tested():
    assert set(SCHEDULES) == {"constant", "linear", "quadratic"}
