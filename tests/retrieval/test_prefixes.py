"""The first numbers of embeddings: the same wherever they are taken."""

import dataclasses
import pathlib

import numpy as np
import pytest
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import prefixes, rank
from lsrjax.retrieval.prefixes import Prefix
from lsrjax.retrieval.rank import Searcher, Way
from lsrjax.retrieval.tasks.task import Task

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TEXTS = ["a", "the quick brown fox jumps", "über", "fox fox", "日本語 の 文", "brown"]
SIZE = 5


def model_of(**options):
    folder = GOLDEN / "xlmr"
    tokenizer = TextTokenizer(folder)
    encoder = tiny.encoder(
        "xlm-roberta",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        max_positions=34,
        pad_token_id=tokenizer.pad_id,
        initializer_range=0.3,
    )
    options = {"head": "dense", "pooling": "mean"} | options
    spec = RetrieverSpec.of(encoder=encoder, **options)
    params = retriever.init_params(spec, 0)
    if spec.towers == "separate":
        one = dataclasses.replace(spec, towers="shared")
        own = (retriever.init_params(one, seed) for seed in range(2))
        params = retriever.with_query_tower(*own)
    return SavedModel(spec, params, folder, None, "a model", 16, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"embedding_size": 7, "towers": "separate"},
        pytest.param({"pooling": "cls"}, marks=pytest.mark.slow),
        pytest.param({"embedding_size": 7, "normalize": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_shorter_model_gives_the_prefixes_of_embeddings(options):
    model = model_of(**options)
    short = prefixes.shortened(model, SIZE, "--embedding_size")
    assert short.spec.views == {"dense": SIZE}
    assert short.digest() != model.digest()
    unit = options.get("normalize", True)
    found = []
    for one in (model, short):
        searcher = Searcher.portable(one, batch_size=4)
        found.append([searcher.queries(TEXTS), searcher.documents(TEXTS)])
    for whole, own in zip(*found, strict=True):
        expected = whole["dense"].toarray()[:, :SIZE]
        if unit:
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(own["dense"].toarray(), expected, atol=1e-6)
        shorter = Prefix(SIZE, unit).apply(whole["dense"]).toarray()
        np.testing.assert_allclose(shorter, expected, atol=1e-6)


def test_a_search_with_prefixes_is_one_with_the_shorter_model():
    model = model_of()
    task = Task(TEXTS[:3], ["xx"] * 3, TEXTS, [{0: 1}, {1: 1}, {2: 1}])
    (prefix,) = prefixes.of_sizes(model.spec, [SIZE], "--embedding_sizes")
    ways = {"all": Way(), "some": Way(prefix=prefix)}
    found = rank.rank(task, Searcher.portable(model), ways, 4)
    short = prefixes.shortened(model, SIZE, "")
    alone = rank.rank(task, Searcher.portable(short), {"": Way()}, 4)[""]
    np.testing.assert_array_equal(found["some"].hits, alone.hits)
    np.testing.assert_allclose(found["some"].scores, alone.scores, atol=1e-6)
    assert found["some"].document_terms == SIZE
    assert found["all"].document_terms == 16
    assert not np.allclose(found["all"].scores, alone.scores, atol=1e-3)


@pytest.mark.parametrize(
    ("head", "size", "message"),
    [
        ("dense", 16, "--size names 16; the embedding has 16 numbers.* 1 to 15"),
        ("dense", -1, "--size names -1; the embedding"),
        ("token_weights", 4, "--size is for models of one embedding.*token_weights"),
        ("m3", 4, "--size is for models of one embedding"),
        ("csr", 4, "--size is for models of one embedding"),
    ],
)
def test_what_has_no_such_prefix_is_refused(head, size, message):
    model = model_of()
    spec = dataclasses.replace(model.spec, head=head, options=None)
    with pytest.raises(InputError, match=message):
        prefixes.shortened(dataclasses.replace(model, spec=spec), size, "--size")
