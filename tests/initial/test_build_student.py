"""What a stage starts from: towers, and the texts that statistics are taken from."""

import dataclasses
import functools
import json
import operator
import shutil

import jax
import numpy as np
import pytest
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert import open_model
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import build_student, fit_to_data
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (4, [4]), (9, [4, 4])])
def test_few_texts_are_one_batch_and_many_are_full_ones(count, sizes):
    texts = [[str(i) for i in range(count // 2)], ["x"] * (count - count // 2)]
    assert [len(batch) for batch in fit_to_data._batches(texts, 4)] == sizes


def test_a_sample_is_spread_over_languages_and_texts():
    texts = {"en": [str(i) for i in range(101)], "ja": ["a", "b"]}
    assert fit_to_data._sample(texts, 10) == {
        "en": ["0", "25", "50", "75", "100"],
        "ja": ["a", "b"],
    }


@pytest.mark.parametrize("begins", [True, False])
def test_a_marker_is_in_front_where_no_special_token_is(begins, tmp_path):
    source = open_model.tokenizer_folder("embedded:english")
    folder = shutil.copytree(source, tmp_path / "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    content |= {} if begins else {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = get_default()
    config.tokenizer, config.model.query_marker = str(folder), "library"
    config.model.head, config.init = "dense", {}
    spec = build_student.student(config, open_model.open_model).spec
    assert spec.marker_place == begins


def config_of(**fields):
    c = get_default()
    c.tokenizer = "embedded:english"
    c.init.model = "before"
    for name, value in fields.items():
        *groups, last = name.split("__")
        functools.reduce(operator.getitem, groups, c)[last] = value
    return c


def saved(head, towers, **options):
    """A stage's model; separate towers have other weights each."""
    size = TextTokenizer(open_model.tokenizer_folder("embedded:english")).vocab_size
    encoder = tiny.encoder(vocab_size=size, hidden_size=4, num_heads=1)
    spec = RetrieverSpec.of(head, encoder, towers=towers, **options)
    _, abstract = retriever.split(dataclasses.replace(spec, towers="shared"))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), abstract)
    if towers == "separate":
        other = jax.tree.map(lambda x: x + 1, params)
        params = retriever.with_query_tower(params, other)
    return SavedModel(spec, params, None, None, "before")


def student(config, model):
    made = build_student.student(config, lambda reference: model)
    return made.spec, made.params([])


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_equal(found, wanted):
    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("asked", "found"), [(-1.0, 0.07), (0.0, 0.0), (0.3, 0.3)])
@pytest.mark.parametrize("field", ["init.model", "init.encoder"])
def test_dropout_is_that_of_the_checkpoint_unless_another_is_asked_for(
    field, asked, found
):
    before = saved("splade", "shared")
    encoder = dataclasses.replace(
        before.spec.encoder, hidden_dropout=0.07, attention_dropout=0.07
    )
    spec = dataclasses.replace(before.spec, encoder=encoder)
    before = dataclasses.replace(before, spec=spec)
    config = config_of(model__head="splade", model__dropout=asked, init__model="")
    config.init[field.removeprefix("init.")] = "before"
    spec = build_student.student(config, lambda reference: before).spec
    assert spec.encoder.hidden_dropout == spec.encoder.attention_dropout == found
    # What the step goes by.
    assert build_student.settled(config, spec).model.dropout == found
    assert config.model.dropout == asked


def test_random_weights_have_no_dropout_of_their_own():
    config = config_of(model__head="splade", init__model="")
    made = build_student.student(config, lambda reference: None).spec.encoder
    assert (made.hidden_dropout, made.attention_dropout) == (0, 0)


def test_the_language_of_an_encoder_with_adapters_is_the_configs():
    before = saved("splade", "shared")
    size = before.spec.encoder.vocab_size
    xmod = tiny.encoder("xmod", vocab_size=size, default_language="de_DE")
    other = dataclasses.replace(
        before, spec=dataclasses.replace(before.spec, encoder=xmod)
    )
    for asked, found in (("", "de_DE"), ("sw", "sw_KE")):
        config = config_of(model__head="splade", model__language=asked)
        spec = build_student.student(config, lambda reference: other).spec
        assert spec.encoder.default_language == found
    for model, message in ((other, "'xx' has no adapters"), (before, "same for all")):
        config = config_of(model__head="splade", model__language="xx")
        with pytest.raises(InputError, match=message):
            build_student.student(config, lambda reference, model=model: model)


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ("xlm-roberta", "bert", True),
        ("xlm-roberta-xl", "bert", False),
        ("bert", "xlm-roberta-xl", False),
        ("gte", "jina_embeddings_v3", False),
        ("qwen3", "llama", False),
    ],
)
def test_an_encoder_starts_from_layers_like_its_own_only(ours, theirs, alike):
    own = tiny.encoder(ours)
    sizes = {k: v for k, v in vars(own).items() if k != "family"}
    other = tiny.encoder(theirs, **sizes)
    if alike:
        fit_to_data._check_alike(own, other, "pivot")
        return
    with pytest.raises(InputError, match="whose layers compute something else"):
        fit_to_data._check_alike(own, other, "pivot")


def test_separate_towers_start_as_one_did():
    model = saved("dense", "shared")
    config = config_of(model__head="dense", model__head__pooling="cls")
    assert student(config, model)[0].towers == "shared"
    config.model.towers = "separate"
    spec, params = student(config, model)
    assert spec.towers == "separate"
    document, query = retriever.towers_of(params)
    assert_equal(document, model.params)
    assert_equal(query, model.params)
    # What a training step is given must be its own.
    for a, b in zip(jax.tree.leaves(document), jax.tree.leaves(query), strict=True):
        assert a is not b


def test_separate_towers_start_as_themselves():
    model = saved("milco", "separate", pivot_vocab_size=7, pivot_hidden_size=4)
    config = config_of(model__towers="separate", model__head__lexecho=True)
    spec, params = student(config, model)
    assert spec.options.lexecho and spec.towers == "separate"
    # What they lack starts fresh in both.
    for found, wanted in zip(
        retriever.towers_of(params), retriever.towers_of(model.params), strict=True
    ):
        assert found["head"].pop("echo").keys() == {"kernel", "bias", "scale"}
        assert_equal(found, wanted)


def test_random_towers_are_equal():
    config = config_of(init__model="", model__head="dense", model__head__pooling="cls")
    config.model.family, config.model.hidden_size = "bert", 8
    config.model.towers = "separate"
    _, params = student(config, None)
    assert_equal(*retriever.towers_of(params))


@pytest.mark.parametrize("field", ["init.model", "init.encoder", "init.head"])
def test_one_tower_is_not_made_of_two(field):
    separate = saved("splade", "separate", tied=True)
    config = config_of(init__model="", model__head="splade")
    if field == "init.head":
        config.model.head = "milco"
        config.model.family = "bert"
    config.init[field.removeprefix("init.")] = "before"
    with pytest.raises(InputError, match=f"config.{field}: before has separate towers"):
        build_student.student(config, lambda reference: separate)


def test_towers_of_a_head_whose_queries_need_no_encoder_are_refused():
    config = config_of(model__head="splade", model__head__queries="words")
    config.model.towers = "separate"
    with pytest.raises(InputError, match="splade need no encoder"):
        build_student.student(
            config, lambda reference: saved("splade", "shared", tied=True)
        )


def test_a_start_of_a_trained_source_view_is_refused():
    config = get_default()
    config.init = {"model": "runs/distill", "idf_echo": {}}
    encoder = tiny.encoder(vocab_size=7, hidden_size=4, num_heads=1, max_positions=8)
    spec = RetrieverSpec.of("milco", encoder, lexecho=True)
    model = SavedModel(spec, {"head": {"echo": {}}}, None, None, "runs/distill")
    with pytest.raises(InputError, match="idf_echo would have no effect: runs/distill"):
        build_student.student(config, lambda reference: model)


def pivot_of(family, **changes):
    size = TextTokenizer(open_model.tokenizer_folder("embedded:english")).vocab_size
    encoder = tiny.encoder(family, vocab_size=size, hidden_size=8, **changes)
    spec = RetrieverSpec.of("splade", encoder, tied=True)
    folder = open_model.tokenizer_folder("embedded:english")
    return SavedModel(spec, retriever.init_params(spec, 1), folder, None, "pivot")


@pytest.mark.parametrize("option", ["translations", "ngrams"])
def test_a_table_that_nothing_fills_is_refused(option):
    config = milco_of("bert")
    config.model.head[option] = 3
    with pytest.raises(InputError, match=f"head.{option} is set, and nothing fills"):
        student(config, pivot_of("bert"))


def test_a_trained_table_of_tokens_does_not_fill_one_of_stems():
    folder = open_model.tokenizer_folder("embedded:english")
    size = TextTokenizer(folder).vocab_size
    encoder = tiny.encoder(vocab_size=size, hidden_size=8, max_positions=16)
    sizes = dict(pivot_vocab_size=8, pivot_hidden_size=8)
    spec = RetrieverSpec.of("milco", encoder, translations=2, **sizes)
    trained = SavedModel(spec, retriever.init_params(spec, 0), folder, folder, "old")
    config = config_of()
    config.model.head = entry("milco", translations=2, stems=7)
    with pytest.raises(InputError, match=r"head.stems .* add config.init.translations"):
        student(config, trained)


def milco_of(family, encoder=""):
    config = config_of(init__model="", tokenizer="embedded:multilingual")
    config.model.family = family
    config.model.update(
        hidden_size=8, num_layers=2, num_heads=2, intermediate_size=17, max_length=16
    )
    config.init = {"head": {"model": "pivot", "encoder": encoder}}
    return config


def test_a_milco_starts_with_modernberts_head_and_encoder():
    """The head computes the same: biases that ModernBERT has not start at 0."""
    pivot = pivot_of("modernbert")
    family = entry("modernbert", local_attention=3)
    spec, params = student(milco_of(family, "shared"), pivot)
    assert spec.options.pivot_layer_norm_eps == pivot.spec.encoder.layer_norm_eps
    ours, theirs = params["head"]["mlm"], pivot.params["head"]["mlm"]
    words = pivot.params["encoder"]["embeddings"]["word"]["embedding"]
    assert_equal(ours["decoder"], words)
    assert_equal(
        [ours["transform"]["dense"]["kernel"], ours["transform"]["norm"]["scale"]],
        [theirs["transform"]["dense"]["kernel"], theirs["transform"]["norm"]["scale"]],
    )
    assert not np.any(ours["transform"]["norm"]["bias"])
    for part in ("first", "layers", "final_norm"):
        assert_equal(params["encoder"][part], pivot.params["encoder"][part])
    own = params["encoder"]["embeddings"]["word"]["embedding"]
    assert own.shape == (spec.encoder.vocab_size, 8)


@pytest.mark.parametrize(
    ("family", "encoder", "pivot", "message"),
    [
        ("bert", "", "norbert3", "pivot is a norbert3, whose masked-LM head is no"),
        ("bert", "", "norbert4", "pivot is a norbert4, whose masked-LM head is no"),
        ("bert", "shared", "modernbert", "the student is a bert, and pivot is a mod"),
        ("norbert3", "shared", "bert", "set config.model.family to 'bert'"),
        (
            "modernbert",
            "shared",
            "modernbert",
            "the student's local_attention is 128, that of pivot is 3",
        ),
    ],
)
def test_a_pivot_that_computes_something_else_is_refused(
    family, encoder, pivot, message
):
    with pytest.raises(InputError, match=message):
        student(milco_of(family, encoder), pivot_of(pivot))


def test_a_milco_of_any_family_has_an_english_head():
    spec, params = student(milco_of("norbert4"), pivot_of("modernbert"))
    assert (spec.encoder.family, spec.head) == ("norbert4", "milco")
    assert params["head"]["connector"]["kernel"].shape == (8, 8)
