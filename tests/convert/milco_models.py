"""Tiny MILCOs on the embedded tokenizers, and what is compared of them."""

import contextlib
import functools
import importlib
import pathlib
import sys

import jax
import numpy as np
from programs import tiny
from transformers import dynamic_module_utils

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.lookups import CLASS, MARK
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder, joined

LENGTHS = {"query": 16, "document": 24}  # of the encoder's 24

CASES = {
    "pivot": {},
    "echo": {"lexecho": True},
    "options": {
        "lexecho": True,
        "repeats": "max",
        "exclude_special_tokens": True,
        "pool_mask": "multiply",
        "query_prompt": "запрос: ",
        "document_prompt": "a document: ",
        "query_marker": 17,
        "document_marker": 19,
    },
    "lookups": {"lexecho": True, "translations": 3, "stems": 499, "ngrams": 997},
    "distilbert": {"lexecho": True, "query_prompt": "query: "},
    "modernbert": {"lexecho": True},
    "gte": {"lexecho": True},
    "jina_embeddings_v3": {"lexecho": True},
    "nomic_bert": {"lexecho": True},
    "mpnet": {"lexecho": True},
    "norbert3": {"lexecho": True},
    "norbert4": {"lexecho": True, "query_prompt": "query: "},
    "deberta-v2": {"lexecho": True},
    "xmod": {"lexecho": True},
}
# The reference has no classes for them.
OWN_FAMILY = (
    *("distilbert", "modernbert", "gte", "jina_embeddings_v3", "nomic_bert"),
    *("deberta-v2", "norbert3", "norbert4"),
)
_FAMILIES = {"options": "bert"} | {one: one for one in ("xmod", "mpnet", *OWN_FAMILY)}
# Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Bengali, Thai, Hangul, Han, Kana.
TEXTS = [
    "Free software, free Software, FREE software!",
    "свободное программное обеспечение",
    "ελεύθερο λογισμικό",
    "برمجيات حرة",
    "תוכנה חופשית",
    "मुक्त सॉफ्टवेयर",
    "মুক্ত সফটওয়্যার",
    "ซอฟต์แวร์เสรี",
    "자유 소프트웨어",
    "自由软件",
    "フリーソフトウェア",
    "",
    " ",
    "a",
    "<pad> </s> <mask> <s>",  # of a text's own, special or not
    "the the the the the the",
]


def of_length(tokenizer, count):
    """A text of `count` tokens, special ones included."""
    text = "a" + " b" * (count - 3)
    assert len(tokenizer.ids([text], 1000)[0]) == count
    return text


def all_texts():
    """Texts in ten scripts, of special tokens, and around the lengths' limits."""
    tokenizer = TextTokenizer(embedded.MULTILINGUAL_TOKENIZER)
    lengths = 15, 16, 17, 23, 24, 25, 300
    return TEXTS + [of_length(tokenizer, count) for count in lengths]


def thousand_documents():
    """Of the embedded data, in any language."""
    groups = embedded.examples("group", "dev")
    found = [
        text for i in range(len(groups)) for text in groups[i].positives[0].values()
    ]
    found = list(dict.fromkeys(found))[:1000]
    assert len(found) == 1000
    return found


def made(case):
    """A tiny MILCO on the embedded tokenizers, its weights far from 0."""
    tokenizer = TextTokenizer(embedded.MULTILINGUAL_TOKENIZER)
    family = _FAMILIES.get(case, "xlm-roberta")
    encoder = tiny.encoder(
        family,
        vocab_size=16_000,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=44,
        max_positions=26 if family in ("xlm-roberta", "xmod", "mpnet") else 24,
        pad_token_id=1,
        layer_norm_eps=1e-12 if family == "distilbert" else 1e-5,
    )
    spec = RetrieverSpec.of(
        "milco",
        encoder,
        pivot_vocab_size=8192,
        pivot_hidden_size=24,
        pivot_layer_norm_eps=1e-6,
        special_ids=tokenizer.special_ids,
        **CASES[case],
    )
    rng = np.random.default_rng(6)

    def drawn(path, leaf):
        mean = float("norm" in str(path[-2]) and "scale" in str(path[-1]))
        return (mean + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, retriever.split(spec)[1])
    params["head"]["mlm"]["bias"] -= 1  # some terms are active, not all
    if "echo" in params["head"]:
        params["head"]["echo"]["scale"] = np.float32(1.7)
    for part, name, below in (
        ("dictionary", "terms", 8192),
        ("stems", "terms", 8192),
        ("stems", "characters", 99),
        ("ngrams", "characters", 99),
    ):
        if part in params["head"]:
            table = params["head"][part]
            table[name] = rng.integers(0, below, table[name].shape).astype(np.float32)
    if "stems" in params["head"]:
        letters = params["head"]["stems"]["characters"]
        letters += CLASS * rng.integers(0, MARK + 1, letters.shape).astype(np.float32)
    return SavedModel(
        spec,
        params,
        pathlib.Path(embedded.MULTILINGUAL_TOKENIZER),
        pathlib.Path(embedded.ENGLISH_TOKENIZER),
        f"tiny/{case}",
        LENGTHS["query"],
        LENGTHS["document"],
    )


@contextlib.contextmanager
def own_modules(folder):
    """Model code is copied to a folder of the test's own, and imported from there."""
    before = dynamic_module_utils.HF_MODULES_CACHE
    dynamic_module_utils.HF_MODULES_CACHE = str(folder)
    # Before the folder of others' model code, which transformers may have added.
    sys.path.insert(0, str(folder))
    _forget_model_code()
    yield
    sys.path.remove(str(folder))
    dynamic_module_utils.HF_MODULES_CACHE = before
    _forget_model_code()


def _forget_model_code():
    """The package `transformers_modules` stays with the folder it was found in."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "transformers_modules":
            del sys.modules[name]
    importlib.invalidate_caches()


@functools.cache
def encoder(spec, folder):
    return TextEncoder(spec, TextTokenizer(folder), batch_size=32)


def ours(model, texts, role, length=None):
    length = length or LENGTHS[role]
    found = encoder(model.spec, model.tokenizer)
    return joined(found.encode(model.params, texts, length, role))


def assert_same(found, wanted, tolerance=1e-5):
    """Relative to the largest weight of each text."""
    assert found.shape == wanted.shape
    largest = np.maximum(wanted.max(axis=1).toarray()[:, 0], 1e-30)
    error = abs(found - wanted).max(axis=1).toarray()[:, 0] / largest
    assert error.max() <= tolerance, (error.argmax(), error.max())


def assert_same_ranking(found, wanted):
    """The same order; where it differs, of scores that are the same to 1e-5."""
    for theirs, mine in zip(found, wanted, strict=True):
        along = mine[np.argsort(-theirs, kind="stable")]
        rises = np.maximum(np.diff(along), 0) / np.abs(along[1:])
        assert rises.max() <= 1e-5
        assert np.ptp(mine) > 0.1 * mine.max()  # there is something to rank


def leaves(tree):
    return {jax.tree_util.keystr(p): v for p, v in jax.tree.leaves_with_path(tree)}


def assert_identical(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert np.asarray(found[name]).dtype == np.asarray(value).dtype, name


def assert_same_model(found, model):
    assert found.spec == model.spec
    assert_identical(leaves(found.params), leaves(model.params))
    assert (found.query_length, found.document_length) == tuple(LENGTHS.values())
    for name in ("tokenizer", "pivot_tokenizer"):
        vocabularies = [
            TextTokenizer(getattr(m, name)).vocabulary() for m in (found, model)
        ]
        assert vocabularies[0] == vocabularies[1]
