"""Terms are counted in the documents of the right language."""

import numpy as np
import pytest
from programs import tiny

from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, InMemory, Pair
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import term_statistics
from lsrjax.models.lookups import hashed
from lsrjax.models.retriever import RetrieverSpec

ENGLISH, MULTILINGUAL = embedded.ENGLISH_TOKENIZER, embedded.MULTILINGUAL_TOKENIZER


def test_texts_of_pairs_and_groups_are_kept_by_language():
    examples = [
        Pair("1", "house", "Haus", "de"),
        Group("2", {"en": "q"}, [{"en": "text", "ja": "本文"}, {"en": "other"}], []),
    ]
    assert term_statistics.texts_by_language(InMemory(examples)) == {
        "en": ["house", "text"],
        "de": ["Haus"],
        "ja": ["本文"],
    }


def spec_of(head, **fields):
    sizes = {
        folder: TextTokenizer(folder).vocab_size for folder in (ENGLISH, MULTILINGUAL)
    }
    folder = ENGLISH if head == "splade" else MULTILINGUAL
    encoder = tiny.encoder(vocab_size=sizes[folder], hidden_size=8, max_positions=8)
    if head == "milco":
        fields |= {"pivot_vocab_size": sizes[ENGLISH], "pivot_hidden_size": 8}
    return RetrieverSpec.of(head, encoder, **fields)


def groups(language):
    """`kernel` is in three of four documents, `driver` in one; its `file` is in all."""
    words = ("kernel file", "kernel file", "kernel file", "driver file")
    return InMemory(
        [
            Group(w, {language: w}, [{language: w, "de": f"Datei {w}"}], [])
            for w in words
        ]
    )


def idf_of(idf_V, folder, word):
    (ids,) = TextTokenizer(folder).ids([word], 8, special=False)
    return idf_V[ids[0]]


def counted(documents, of=4):
    return np.log1p((of - documents + 0.5) / (documents + 0.5))


def test_ngrams_are_counted_once_a_text_where_they_are_commonest():
    spec = spec_of("milco", ngrams=2**16)
    texts = {"en": ["kernel kernel", "file", "", "driver"], "de": ["Kernel", "Kerne"]}
    tokenizer = TextTokenizer(MULTILINGUAL)
    table, idf_V = term_statistics.ngram_idf(tokenizer, texts, spec)

    def columns(word):
        batch = tokenizer.batch([word], 8, ())
        keep = batch["mask"].astype(bool)
        found = np.asarray(hashed(table, batch["ids"], keep, spec.views["surface"]))
        return np.unique(found[found >= 0])

    # In both German texts, and in one of four English ones.
    np.testing.assert_allclose(idf_V[columns("kerne")], counted(2, of=2), rtol=1e-5)
    np.testing.assert_allclose(idf_V[columns("file")], counted(1), rtol=1e-5)


@pytest.mark.parametrize("language", ["en", ANY])
def test_idf_of_each_view_is_of_its_own_vocabulary(language):
    spec = spec_of("milco", lexecho=True)
    found = term_statistics.idf_of_views(spec, MULTILINGUAL, ENGLISH, groups(language))
    assert {view: idf.shape for view, idf in found.items()} == {
        view: (size,) for view, size in spec.views.items()
    }
    for word, documents in (("kernel", 3), ("driver", 1), ("file", 4)):
        value = idf_of(found["pivot"], ENGLISH, word)
        assert value == pytest.approx(counted(documents), rel=1e-5)
    # German documents count for the source view only.
    assert idf_of(found["pivot"], ENGLISH, "network") == pytest.approx(counted(0))
    assert idf_of(found["source"], MULTILINGUAL, "Datei") == pytest.approx(counted(4))


def test_idf_of_a_splade():
    spec = spec_of("splade")
    found = term_statistics.idf_of_views(spec, ENGLISH, None, groups("en"))
    assert found.keys() == {"terms"}
    assert idf_of(found["terms"], ENGLISH, "driver") == pytest.approx(counted(1))


def test_a_pivot_view_needs_english_documents():
    with pytest.raises(InputError, match="the training documents are in de, fr"):
        term_statistics.idf_of_views(
            spec_of("milco"), MULTILINGUAL, ENGLISH, groups("fr")
        )
