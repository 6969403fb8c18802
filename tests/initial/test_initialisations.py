"""How a config names initialisations, and in which order they are applied."""

import numpy as np
import pytest

from lsrjax.config import fields
from lsrjax.config.fields import get_default
from lsrjax.errors import InputError
from lsrjax.initial import initialisations, term_statistics
from lsrjax.initial.build_student import student


def names(config):
    return [one.name for one in initialisations.of(config.init)]


def test_they_are_applied_in_the_order_of_the_table():
    config = get_default()
    config.init = {"idf_echo": {"scale": 2.0}, "head": "a", "encoder": {"model": "b"}}
    assert names(config) == ["encoder", "head", "idf_echo"]
    found = {one.name: one.options for one in initialisations.of(config.init)}
    assert (found["encoder"].model, found["head"].model) == ("b", "a")
    assert (found["head"].encoder, found["idf_echo"].scale) == ("", 2.0)


def test_a_flag_adds_one_or_takes_one_out():
    config = get_default()
    for flag, value in {
        "init.lexical": None,
        "init.encoder": "me/encoder",
        "init.idf_echo.scale": "0.6",
        "init.head": "me/head",
        "init.head.encoder": "shared",
    }.items():
        fields.set_field(config, flag, value, "--config")
    assert names(config) == ["encoder", "head", "lexical", "idf_echo"]
    assert config.init["encoder"] == {"model": "me/encoder"}
    assert config.init["idf_echo"] == {"scale": 0.6}
    assert config.init["head"] == {"model": "me/head", "encoder": "shared"}
    fields.set_field(config, "init.encoder", "", "--config")
    fields.set_field(config, "init.lexical", "False", "--config")
    assert names(config) == ["head", "idf_echo"]


def test_an_unknown_one_lists_the_known():
    config = get_default()
    config.init = {"encodre": "x"}
    with pytest.raises(InputError, match="'encodre'; known: 'model', 'encoder', 'he"):
        names(config)


def test_words_of_static_queries_start_at_their_idf(monkeypatch):
    """Special tokens weigh nothing; statistics are counted once for all."""
    counted = []
    idf = np.arange(1.0, 10_000.0)

    def least_idf(tokenizer, texts, size):
        counted.append(size)
        return idf[:size].copy()

    monkeypatch.setattr(term_statistics, "least_idf", least_idf)
    config = get_default()
    config.model.head = "splade"
    config.model.head.queries = "static"
    config.model.hidden_size, config.model.num_heads, config.model.num_layers = 8, 2, 1
    config.tokenizer = "embedded:english"
    config.init = {"lexical": {}, "idf_queries": {}}
    made = student(config, None)
    weights = made.params([])["head"]["static"]
    size = made.spec.encoder.vocab_size
    wanted = idf[:size].copy()
    wanted[list(made.spec.special_ids)] = 0
    np.testing.assert_allclose(weights, wanted, rtol=1e-6)
    assert counted == [size] and (wanted == 0).sum() == len(made.spec.special_ids) > 0
