"""Signs of lost models, and when a run stops for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import tiny

from lsrjax.bench import workload
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching import loader
from lsrjax.data.batching.drawing import GroupBatches
from lsrjax.data.batching.orders import Order
from lsrjax.data.debian_texts import embedded
from lsrjax.data.debian_texts.embedded import examples as debian
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.models.batch import apply_batch
from lsrjax.models.retriever import RetrieverSpec, apply, split
from lsrjax.models.views import Bag, Dense, Vector
from lsrjax.training import collapse, train_step
from lsrjax.training.batch_contents import Contents


def random_params(spec):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), split(spec)[1]
    )


def vector(weights):
    weights = jnp.asarray(weights, jnp.float32)
    return Vector(weights, weights)


VIEWS = {
    "query": {
        "pivot": vector([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 2]]),
        "source": Bag(
            jnp.array([[4, 2], [1, 1], [0, 0]]),
            jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]]),
            5,
        ),
    },
    "document": {"dense": Dense(jnp.zeros((3, 2)))},
}


def test_a_text_is_empty_where_no_view_has_a_weight():
    found = collapse.signs(VIEWS)
    assert found.keys() == {"empty_query"}
    assert float(found["empty_query"]) == pytest.approx(1 / 3)


def test_unused_terms_are_those_of_no_text_in_the_batch():
    found = collapse.signs(VIEWS, {"pivot": 4, "source": 5})
    assert float(found["unused_query_pivot"]) == pytest.approx(2 / 4)
    assert float(found["unused_query_source"]) == pytest.approx(4 / 5)
    # Where terms do not divide over devices, zeros stand behind the last one.
    found = collapse.signs(VIEWS, {"pivot": 3, "source": 5})
    assert float(found["unused_query_pivot"]) == pytest.approx(1 / 3)


def test_a_run_stops_after_many_steps_of_empty_vectors_in_a_row():
    watch = collapse.Watch()
    empty, alive = {"empty_query": 1.0, "empty_document": 0.0}, {"empty_query": 0.99}
    empty["lambda_query"] = 0.5
    for _ in range(2):
        for _ in range(49):
            assert not watch.look(dict(empty))
        assert not watch.look(dict(alive))
    for _ in range(49):
        assert not watch.look(dict(empty))
    lost = watch.look(dict(empty))
    assert "every query vector has been empty for 50 steps" in lost
    assert "config.regularizer.query" in lost


BOTH = {"empty_query": 1.0, "empty_document": 1.0}
HUGE = {"lambda_query": 100.0, "lambda_document": 1e-3}


def collapsed(watch, numbers):
    """What ends a run with these numbers in each step."""
    return next(lost for _ in range(60) if (lost := watch.look(dict(numbers))))


def test_of_both_lambdas_the_larger_one_is_blamed():
    apart = collapse.Watch(coupled=False)
    lost = collapsed(apart, HUGE | BOTH)
    assert "every document vector for 50" in lost
    blamed = (
        "The largest lambda at this step is config.regularizer.query = 100 (beside"
        " config.regularizer.document = 0.001): lower it"
    )
    assert blamed in lost
    # A shared encoder is emptied by either lambda.
    lost = collapsed(collapse.Watch(), HUGE | {"empty_document": 1.0})
    assert "query vector" not in lost and blamed in lost
    # Encoders of their own are emptied by their own lambda.
    apart = collapse.Watch(coupled=False)
    lost = collapsed(apart, HUGE | {"empty_document": 1.0, "empty_query": 0.0})
    assert "config.regularizer.document = 0.001: lower it" in lost
    assert "regularizer.query" not in lost


def test_equal_lambdas_are_blamed_together():
    lost = collapsed(
        collapse.Watch(), BOTH | {"lambda_query": 2.0, "lambda_source_document": 2.0}
    )
    assert (
        "The largest lambdas at this step are config.regularizer.query = 2 and"
        " config.regularizer.source_document = 2: lower them"
    ) in lost


def test_in_a_warm_up_a_lambda_is_that_of_the_step():
    watch = collapse.Watch(lambdas={"query": 100.0, "document": 1e-3})
    numbers = {"lambda_query": 26.0, "lambda_document": 2.6e-4}
    lost = collapsed(watch, BOTH | numbers)
    assert "config.regularizer.query = 26 (100 in the config)" in lost


def test_where_no_lambda_is_set_none_is_blamed():
    lost = collapsed(collapse.Watch(), BOTH)
    assert "No lambda is set" in lost and "lower config.optim.lr" in lost
    # Nor where the only one is of texts that do not share the encoder.
    apart = collapse.Watch(coupled=False)
    lost = collapsed(apart, {"empty_document": 1.0, "lambda_query": 100.0})
    assert "No lambda is set" in lost


@pytest.mark.parametrize(
    "options, regularizer, coupled",
    [
        ({}, "flops", True),
        ({"towers": "separate"}, "flops", False),
        ({"queries": "words"}, "flops", False),  # they are not encoded
        ({"queries": "words"}, "joint_flops", True),
    ],
)
def test_whose_vectors_a_lambda_reaches(options, regularizer, coupled):
    spec = RetrieverSpec.of("splade", tiny.encoder(), tied=True).replaced(**options)
    config = get_default()
    config.regularizer = entry(regularizer, document=0.5)
    watch = collapse.Watch.of(spec, config)
    assert watch.coupled == coupled
    assert watch.lambdas == {"document": 0.5}


def test_empty_vectors_are_said_once_before_they_end_a_run():
    watch = collapse.Watch()
    numbers = HUGE | {"empty_query": 0.5, "empty_document": 0.0}
    watch.look(dict(numbers))
    assert not watch.empty_now(numbers)
    for _ in range(2):
        watch.look(HUGE | BOTH)
    said = watch.empty_now(HUGE | BOTH)
    assert said.startswith("every query and document vector is empty")
    assert "config.regularizer.query = 100 (beside" in said
    assert not watch.empty_now(HUGE | BOTH)
    # Vectors of pairs are empty for a while, and come back.
    pairs = collapse.Watch()
    pairs.look({"empty_english": 1.0})
    assert not pairs.empty_now({"empty_english": 1.0})


def test_pairs_are_aligned_by_raw_values_so_that_empty_ones_go_on():
    watch = collapse.Watch()
    for _ in range(200):
        assert not watch.look({"empty_translation": 1.0, "empty_english": 1.0})


@pytest.mark.parametrize("text", ["translation", "query"])
def test_a_stage_does_not_end_with_vectors_that_are_all_empty(text):
    watch = collapse.Watch()
    for _ in range(11):
        assert not watch.look({f"empty_{text}": 1.0})
    assert f"every {text} vector has been empty for 12 steps" in watch.look(
        {f"empty_{text}": 1.0}, last=True
    )
    # What came back at the end has not collapsed.
    assert not watch.look({f"empty_{text}": 0.9}, last=True)


def test_pairs_have_more_time_but_not_for_ever():
    watch = collapse.Watch()
    lost = [watch.look({"empty_english": 1.0}) for _ in range(1000)]
    assert not any(lost[:-1]) and "every english vector" in lost[-1]


def test_vectors_of_most_terms_are_said_once():
    watch = collapse.Watch({"pivot": 8192})
    dense = {"active_document_pivot": 7949.0, "active_query_pivot": 40.0, "loss": 1.0}
    said = [watch.odd_now(dense) for _ in range(600)]
    (text,) = sum(said, [])
    assert "a document has 7,949 active terms of 8,192" in text
    assert said.index([text]) == 499
    assert not watch.odd_now(dense, last=True)


def test_a_short_stage_says_at_its_end_that_its_vectors_are_dense():
    watch = collapse.Watch({"terms": 10})
    for _ in range(20):
        assert not watch.odd_now({"active_query_terms": 6.0})
    assert len(watch.odd_now({"active_query_terms": 6.0}, last=True)) == 1
    assert not collapse.Watch({"terms": 10}).odd_now({"active_query_terms": 6.0}, True)


@pytest.mark.parametrize(
    "active, said",
    [
        (
            0.96,
            "a query has 0.96 active terms of 8,192 on average (pivot): most have none",
        ),
        (1.0, None),
        (819.0, None),
        (820.0, "a query has 820 active terms of 8,192 on average (pivot), 10%: such"),
    ],
)
def test_a_view_under_one_term_or_over_a_tenth_of_them_is_said_once(active, said):
    watch = collapse.Watch({"pivot": 8192})
    found = [watch.odd_now({"active_query_pivot": active}) for _ in range(600)]
    lines = sum(found, [])
    assert len(lines) == (said is not None)
    if said:
        assert lines[0].startswith(said) and found.index(lines) == 499
    # What recovers in between is not reported.
    watch = collapse.Watch({"pivot": 8192})
    for step in range(1200):
        value = 50.0 if step % 400 == 0 else active
        assert not watch.odd_now({"active_query_pivot": value})


@pytest.mark.parametrize("count", [41, 55, 110])
def test_all_are_all_however_many(count):
    """A mean of so many ones rounds to less than 1 where it is compiled."""
    views = {"query": {"terms": vector(np.zeros((count, 2)))}}
    signs = jax.jit(lambda views: collapse.signs(views))
    assert float(signs(views)["empty_query"]) == 1


def test_expansion_is_the_mass_on_terms_that_are_not_in_the_text():
    weights = [[1, 2, 0, 4, 0.5], [0, 3, 0, 0, 0], [0, 0, 0, 0, 0]]
    # A repeated token counts once; 4 stands in the padding of the second text.
    ids = jnp.array([[3, 0, 3, 2], [0, 2, 4, 4], [1, 1, 1, 1]])
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    views = {"query": {"terms": vector(weights)}, "document": VIEWS["document"]}
    found = collapse.expansion(views, {("query", "terms"): (ids, mask)})
    assert found.keys() == {"expansion_query_terms"}
    # Of 7.5 and 3: terms 1 and 4 of the first text, term 1 of the second.
    assert float(found["expansion_query_terms"]) == pytest.approx((2.5 + 3) / 10.5)


def test_empty_vectors_have_no_expansion():
    views = {"query": {"terms": vector([[0, 0]])}}
    ids = jnp.zeros((1, 1), int)
    found = collapse.expansion(views, {("query", "terms"): (ids, ids + 1)})
    assert float(found["expansion_query_terms"]) == 0


def test_active_terms_by_language():
    languages = {"query": jnp.array([1, 3, 1]), "document": jnp.array([0, 0, 0])}
    found = collapse.active_by_language(VIEWS, languages, 3)
    assert found.keys() == {"active_query_pivot", "active_query_source"}
    # Texts without a term count, a repeated one once.
    pivot = np.asarray(found["active_query_pivot"])
    np.testing.assert_array_equal(pivot, [[0, 2, 0, 0], [0, 2, 0, 1]])
    source = np.asarray(found["active_query_source"])
    np.testing.assert_array_equal(source, [[0, 0, 0, 1], [0, 2, 0, 1]])
    # No text is in da or in de.
    assert collapse.by_name(("da", "en", "de"), found) == {
        "active_query_pivot/en": 1.0,
        "active_query_pivot/other": 0.0,
        "active_query_source/en": 0.0,
        "active_query_source/other": 1.0,
    }


def test_shares_of_nothing_are_not_logged():
    numbers = {"empty_query": 0.0, "empty_document": 0.25, "loss": 0.0}
    assert not collapse.Watch().look(numbers)
    assert numbers == {"empty_document": 0.25, "loss": 0.0}
    assert np.isfinite(numbers["loss"])


def test_both_texts_of_a_pair_are_compared_with_the_english_one():
    sizes = workload.StepSizes(
        task="alignment", layers=1, dim=8, heads=1, inner=8, vocab=50, pivot_vocab=40
    )
    sizes = dataclasses.replace(sizes, batch=6, length=9, fill=0.6, parts=2)
    config = workload.config_of(sizes, 10)
    config.log.health, config.batch_size = True, 6
    teacher = workload.teacher_of(sizes)
    step = train_step.make_step(config, 10, workload.student_of(sizes), teacher)
    params, teacher_params = (
        random_params(spec) for spec in (workload.student_of(sizes), teacher)
    )
    batch = workload.batches(sizes, 1)[0]
    taken = jax.jit(step)
    metrics = taken(train_step.init_state(step, params), teacher_params, batch)[1]
    assert "by_language" not in metrics
    laid = [
        ids[mask > 0]
        for part in batch["teacher"]["parts"]
        for ids, mask in zip(part["ids"], part["mask"], strict=True)
    ]
    english = [laid[place] for place in batch["teacher"]["place"]["teacher"]]
    views = apply_batch(step.graphdef, params, batch["student"])
    for text in ("translation", "english"):
        weights = np.asarray(views[text]["pivot"].weights_BV)
        outside = sum(
            np.delete(row, np.unique(ids)).sum()
            for row, ids in zip(weights, english, strict=True)
        )
        expected = outside / weights.sum()
        assert 0.1 < expected < 0.99
        found = float(metrics[f"expansion_{text}_pivot"])
        assert found == pytest.approx(expected, rel=1e-4)


def test_signs_of_a_batch_of_the_embedded_data():
    """Every text encoded by itself, and counted in numpy."""
    config = get_default()
    config.update(
        {"batch_size": 16, "log": {"health": True}, "data": {"group_size": 1}}
    )
    config.data.source, config.loss = "debian", {"infonce": {}}
    languages = Contents.of(config).languages
    assert languages == embedded.LANGUAGES
    field = TextField(TextTokenizer(embedded.MULTILINGUAL_TOKENIZER), 16)
    weights = dict.fromkeys(("en", "da", "ja"), 1.0)
    build = GroupBatches(
        *(field, field, 1, "passages", weights, weights, False, True),
        languages=languages,
    )
    source = debian("group", "dev")
    order = Order(len(source), 16, 0)
    batch = loader.Batches(source, order, build, parts=2)[0]
    encoder = tiny.encoder(
        vocab_size=field.tokenizer.vocab_size,
        hidden_size=8,
        num_heads=1,
        pad_token_id=field.tokenizer.pad_id,
    )
    spec = RetrieverSpec.of("splade", encoder, tied=True)
    step = train_step.make_step(config, 10, spec)
    params = random_params(spec)
    state = train_step.init_state(step, params)
    taken = jax.jit(step)
    found = collapse.as_floats(taken(state, None, batch)[1], languages)

    laid = [
        row
        for part in batch["student"]["parts"]
        for row in zip(part["ids"], part["mask"], strict=True)
    ]
    places = batch["student"]["place"]
    rows = [laid[place] for name in ("query", "document") for place in places[name]]
    assert len(rows) == 32
    shown = {}  # languages by token ids
    data = embedded.load("dev")
    for language in languages:
        texts = [*data.titles[language].values(), *data.texts[language].values()]
        for ids in field.ids(texts):
            shown.setdefault(tuple(ids), set()).add(language)
    encode = jax.jit(
        lambda ids, mask: apply(step.graphdef, params, {"ids": ids, "mask": mask})
    )
    for text, own in (("query", rows[:16]), ("document", rows[16:])):
        active, outside, total = {}, 0.0, 0.0
        numbers = batch["targets"][f"{text}_language"].reshape(-1)
        for (ids, mask), number in zip(own, numbers, strict=True):
            kept = ids[mask > 0]
            language = languages[number]
            assert language in shown[tuple(kept.tolist())]
            padded = np.pad(kept, (0, 16 - len(kept)))[None]
            there = np.arange(16)[None] < len(kept)
            row = np.asarray(encode(padded, there)["terms"].weights_BV)[0]
            active.setdefault(language, []).append((row > 0).sum())
            outside += np.delete(row, np.unique(kept)).sum()
            total += row.sum()
        assert len(active) > 2 and 0.1 < outside / total < 1
        name = f"{text}_terms"
        assert found[f"expansion_{name}"] == pytest.approx(outside / total, rel=1e-4)
        by_language = {
            k: v for k, v in found.items() if k.startswith(f"active_{name}/")
        }
        assert by_language == pytest.approx(
            {f"active_{name}/{key}": np.mean(values) for key, values in active.items()}
        )
        everything = np.concatenate(list(active.values())).mean()
        assert found[f"active_{name}"] == pytest.approx(everything)
