"""Retrievers with random weights, one for each kind of folder, and what they encode."""

import functools

import jax
import numpy as np
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer, unpooled
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.maxsim import TokenMatrix

QUERY, DOCUMENT = 11, 19  # tokens
# One token each, in both vocabularies.
WORD = "file"
TEXTS = [
    "",
    WORD,
    " ".join([WORD] * (QUERY - 2)),
    " ".join([WORD] * (DOCUMENT - 2)),
    " ".join([WORD, "of a"] * DOCUMENT),
    "Don't stop: [x] (y) ... 3.5% #1!",
    "Größe café naïve",
    "Привет, мир",
    "Γειά σου κόσμε",
    "你好，世界",
    "こんにちは世界",
    "안녕 세상",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีโลก 🙂",
    "[MASK] a file <mask>",
]
TOKENIZERS = {
    "bert": embedded.ENGLISH_TOKENIZER,
    "distilbert": embedded.ENGLISH_TOKENIZER,
    "xlm-roberta": embedded.MULTILINGUAL_TOKENIZER,
    "modernbert": embedded.ENGLISH_TOKENIZER,
    "norbert3": embedded.ENGLISH_TOKENIZER,
    "norbert4": embedded.ENGLISH_TOKENIZER,
    "qwen3": embedded.ENGLISH_TOKENIZER,
    "llama": embedded.MULTILINGUAL_TOKENIZER,
    "mistral": embedded.MULTILINGUAL_TOKENIZER,
    "eurobert": embedded.ENGLISH_TOKENIZER,
    "gemma": embedded.MULTILINGUAL_TOKENIZER,
    "gemma2": embedded.MULTILINGUAL_TOKENIZER,
    "gemma3_text": embedded.ENGLISH_TOKENIZER,
    "deberta-v2": embedded.MULTILINGUAL_TOKENIZER,
    "xlm-roberta-xl": embedded.MULTILINGUAL_TOKENIZER,
    "xmod": embedded.MULTILINGUAL_TOKENIZER,
    "gte": embedded.MULTILINGUAL_TOKENIZER,
    "jina_embeddings_v3": embedded.MULTILINGUAL_TOKENIZER,
    "nomic_bert": embedded.ENGLISH_TOKENIZER,
    "electra": embedded.ENGLISH_TOKENIZER,
    "ernie": embedded.ENGLISH_TOKENIZER,
    "mpnet": embedded.MULTILINGUAL_TOKENIZER,
}
COLBERT = {
    "head": "colbert",
    "embedding_size": 7,
    "expand": True,
    "skip": True,
    "markers": ("##ly", "##ing"),
}
# Target, family and spec of each kind of model.
CASES = {
    "splade": ("splade", "bert", {"tied": True}),
    "splade untied sum": (
        "splade",
        "xlm-roberta",
        {"pooling": "sum", "query_prompt": "query: ", "document_prompt": "text: "},
    ),
    "splade towers": (
        "splade",
        "bert",
        {"towers": "separate", "markers": ("##ly", "##ing")},
    ),
    "opensearch": (
        "splade",
        "bert",
        {"tied": True, "activation": "log1p_relu", "most_active": 6},
    ),
    "opensearch sum": (
        "splade",
        "xlm-roberta",
        {"pooling": "sum", "activation": "log1p_relu"},
    ),
    "opensearch static": (
        "inference-free",
        "distilbert",
        {
            "tied": True,
            "queries": "static",
            "activation": "log1p_relu",
            "most_active": 4,
        },
    ),
    "splade distilbert": ("splade", "distilbert", {"tied": True}),
    "splade modernbert": ("splade", "modernbert", {"tied": True}),
    "splade norbert3": ("splade", "norbert3", {"tied": True}),
    "splade norbert4 shifted": ("splade", "norbert4", {"logits": "shifted"}),
    "splade norbert4 capped": (
        "splade",
        "norbert4",
        {"logits": "capped", "tied": True, "most_active": 9},
    ),
    "splade norbert towers": ("splade", "norbert3", {"towers": "separate"}),
    "static norbert3": ("inference-free", "norbert3", {"queries": "static"}),
    "splade qwen3": ("splade", "qwen3", {"tied": True}),
    "splade mistral": ("splade", "mistral", {"tied": False}),
    "splade eurobert": ("splade", "eurobert", {"tied": False}),
    "splade gemma2": ("splade", "gemma2", {"tied": True, "most_active": 6}),
    "splade deberta": ("splade", "deberta-v2", {"tied": True}),
    "splade xl": ("splade", "xlm-roberta-xl", {"tied": True}),
    "splade xmod": ("splade", "xmod", {}),
    "splade untied deberta": ("splade", "deberta-v2", {}),
    "splade gte": ("splade", "gte", {"tied": True}),
    "splade jina": ("splade", "jina_embeddings_v3", {}),
    "splade nomic": ("splade", "nomic_bert", {"tied": True}),
    "splade electra": ("splade", "electra", {"tied": True}),
    "splade ernie": ("splade", "ernie", {}),
    "splade mpnet": ("splade", "mpnet", {"tied": True}),
    "splade untied": ("splade", "bert", {"markers": ("##ly", "##ing")}),
    "splade xlm-roberta": ("splade", "xlm-roberta", {"tied": True}),
    "static": (
        "inference-free",
        "bert",
        {"tied": True, "queries": "static", "markers": ("##ly", "##ing")},
    ),
    "static xlm-roberta": (
        "inference-free",
        "xlm-roberta",
        {"queries": "static", "query_prompt": "find ", "more": 3},
    ),
    "words": ("inference-free", "bert", {"tied": True, "queries": "words"}),
    "csr": (
        "csr",
        "bert",
        {
            "head": "csr",
            "pooling": "mean",
            "latents": 53,
            "active_latents": 5,
            "revived_latents": 7,
            "dead_after": 3,
            "query_prompt": "query: ",
        },
    ),
    "csr towers": (
        "csr",
        "bert",
        {
            "head": "csr",
            "towers": "separate",
            "pooling": "mean",
            "latents": 53,
            "active_latents": 5,
            "revived_latents": 7,
            "dead_after": 3,
        },
    ),
    "csr projected": (
        "csr",
        "xlm-roberta",
        {
            "head": "csr",
            "pooling": "cls",
            "embedding_size": 7,
            "normalize": False,
            "latents": 53,
            "active_latents": 5,
            "revived_latents": 7,
            "dead_after": 3,
        },
    ),
    "dense": ("dense", "bert", {"head": "dense", "pooling": "cls"}),
    "dense distilbert": ("dense", "distilbert", {"head": "dense", "pooling": "cls"}),
    "dense modernbert": (
        "dense",
        "modernbert",
        {"head": "dense", "pooling": "mean", "embedding_size": 7},
    ),
    "dense norbert4": (
        "dense",
        "norbert4",
        {"head": "dense", "pooling": "mean", "embedding_size": 7},
    ),
    "dense llama": ("dense", "llama", {"head": "dense", "pooling": "mean"}),
    "dense qwen3": (
        "dense",
        "qwen3",
        {"head": "dense", "pooling": "last", "query_prompt": "Query: "},
    ),
    # The prompts are read, and not pooled.
    "dense qwen3 alone": (
        "dense",
        "qwen3",
        {
            "head": "dense",
            "pooling": "mean",
            "include_prompt": False,
            "query_prompt": "find the: ",
            "markers": ("##ly", "##ing"),
        },
    ),
    "csr alone": (
        "csr",
        "xlm-roberta",
        {
            "head": "csr",
            "include_prompt": False,
            "query_prompt": "query: ",
            "pooling": "cls",
            "latents": 53,
            "active_latents": 5,
            "revived_latents": 7,
            "dead_after": 3,
        },
    ),
    "dense towers alone": (
        "dense",
        "bert",
        {
            "head": "dense",
            "towers": "separate",
            "pooling": "mean",
            "include_prompt": False,
            "query_prompt": "query: ",
            "document_prompt": "a text: ",
        },
    ),
    "dense gemma3_text": (
        "dense",
        "gemma3_text",
        {"head": "dense", "pooling": "mean", "embedding_size": 7},
    ),
    "dense gte": ("dense", "gte", {"head": "dense", "pooling": "cls"}),
    "dense jina": (
        "dense",
        "jina_embeddings_v3",
        {"head": "dense", "pooling": "mean", "embedding_size": 7},
    ),
    "dense nomic": ("dense", "nomic_bert", {"head": "dense", "pooling": "mean"}),
    "dense towers": (
        "dense",
        "xlm-roberta",
        {
            "head": "dense",
            "towers": "separate",
            "pooling": "cls",
            "embedding_size": 7,
            "query_prompt": "query: ",
        },
    ),
    "dense projected": (
        "dense",
        "xlm-roberta",
        {"head": "dense", "pooling": "mean", "embedding_size": 7},
    ),
    "dense deberta": ("dense", "deberta-v2", {"head": "dense", "pooling": "mean"}),
    "multi-vector": ("multi-vector", "bert", COLBERT),
    "multi-vector xlm-roberta": (
        "multi-vector",
        "xlm-roberta",
        COLBERT | {"markers": ("▁linux", "▁game")},
    ),
    "multi-vector plain": (
        "multi-vector",
        "xlm-roberta",
        {"head": "colbert", "normalize": False, "query_prompt": "query: "},
    ),
    "pylate": ("pylate", "bert", COLBERT),
    "pylate modernbert": ("pylate", "modernbert", COLBERT),
    "pylate xmod": (
        "pylate",
        "xmod",
        COLBERT | {"markers": ("▁linux", "▁game")},
    ),
    "pylate xlm-roberta": (
        "pylate",
        "xlm-roberta",
        COLBERT | {"markers": ("▁linux", "▁game")},
    ),
    "colbert": ("colbert", "bert", COLBERT),
    "colbert xmod": (
        "colbert",
        "xmod",
        COLBERT | {"skip": False, "markers": ("▁linux", "▁game")},
    ),
    "colbert xlm-roberta": (
        "colbert",
        "xlm-roberta",
        COLBERT | {"skip": False, "markers": ("▁linux", "▁game")},
    ),
}


def spec_of(family, options):
    tokenizer = TextTokenizer(TOKENIZERS[family])
    options = {"head": "splade"} | options
    if options["head"] == "splade":
        options = {"tied": False} | options
    whole = options.pop("include_prompt", True)
    more = options.pop("more", 0)  # rows of the word table without a token
    options["special_ids"] = tokenizer.special_ids
    if options.pop("expand", False):
        options["expand_id"] = tokenizer.mask_id
    if options.pop("skip", False):
        options["skip_ids"] = tokenizer.punctuation_ids
    vocabulary = tokenizer.vocabulary()
    for role, marker in zip(
        ("query", "document"), options.pop("markers", ()), strict=False
    ):
        options[f"{role}_marker"] = vocabulary[marker]
    xlmr = family in ("xlm-roberta", "xlm-roberta-xl", "xmod")
    encoder = tiny.encoder(
        family,
        vocab_size=tokenizer.vocab_size + more,
        # RoPE turns pairs within a head, of which there are two.
        hidden_size=10 if family in ("bert", "distilbert", "xlm-roberta") else 12,
        max_positions=24 + 2 * xlmr,
        pad_token_id=tokenizer.pad_id,
        layer_norm_eps=1e-5 if xlmr else 1e-12,
    )
    spec = RetrieverSpec.of(encoder=encoder, **options)
    return spec if whole else spec.replaced(**unpooled(spec, tokenizer))


@functools.cache
def model_of(case):
    """A retriever with random weights whose vectors differ between texts."""
    _, family, options = CASES[case]
    spec = spec_of(family, options)
    _, abstract = retriever.split(spec)
    rng = np.random.default_rng(7)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        if name == "scale":
            return 1 + values / 3
        if name == "idle":
            return rng.integers(-1, 9, leaf.shape).astype(np.float32)
        if name == "static":
            values = np.abs(values)
            values[list(spec.special_ids)] = 0
        return values

    params = jax.tree_util.tree_map_with_path(draw, abstract)
    folder = TOKENIZERS[family]
    return SavedModel(spec, params, folder, None, case, QUERY, DOCUMENT)


@functools.lru_cache(8)
def encoder(spec, folder):
    """Compiled once for models that differ in their weights alone."""
    return TextEncoder(spec, TextTokenizer(folder), batch_size=16)


def ours(model, texts, role):
    length = getattr(model, f"{role}_length")
    found = encoder(model.spec, model.tokenizer)
    (view,) = found.encode(model.params, texts, length, role).values()
    return view if isinstance(view, TokenMatrix) else view.toarray()


def assert_same(found, wanted):
    if isinstance(wanted, TokenMatrix):
        np.testing.assert_array_equal(found.starts, wanted.starts)
        found, wanted = found.tokens_TD, wanted.tokens_TD
    assert found.shape == wanted.shape
    tolerance = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance)
    assert tolerance > 0
