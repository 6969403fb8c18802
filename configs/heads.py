"""Every head on the same data, from the same start: compares cost and quality.

    lsrjax train --config heads

On the embedded Debian descriptions, trains an English SPLADE and from it a multilingual
encoder (`align`, as the demo's, without its tables). Each head then learns on that
encoder from 200 batches of titles in 13 languages with English descriptions, by InfoNCE
over the batch.
Some start differently: SPLADE and the heads with its terms, which are tied to its word
embeddings, as a bag of the text's own words, and CSR from the dense model, as intended
by its authors. Of `dense`, low-rank factors or prompt vectors alone are trained as
well. The tables compare them with BM25.
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.stages = {
        "teacher": teacher(),
        "align": align(),
        "splade": splade(),
        "inference_free": inference_free(),
        "token_weights": student("token_weights"),
        "deepimpact": deepimpact(),
        "dense": dense("dense"),
        "lora": adapted(lora={"rank": 16}),
        "prompt": adapted(prompt={"queries": 8, "documents": 8}),
        "csr": csr(),
        "colbert": colbert("colbert"),
        "hybrid": hybrid(),
        "aggretriever": aggretriever(),
        "m3": m3(),
        "milco": milco(),
    }
    c.evaluate.test = "debian"
    return c


def stage() -> ConfigDict:
    """The part that all stages share."""
    c = get_default()
    c.data.source = "debian"
    c.data.query_length = 24
    c.data.document_length = 64
    c.data.document_languages = {"en": 1}
    # Too few steps to repay the compilation of many parts.
    c.data.length_parts = 6
    c.batch_size = 64
    c.loss = {"infonce": {}}
    c.optim.lr = 1e-3
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 20
    c.dev.source = "debian"
    c.steps = 200
    return c


def teacher() -> ConfigDict:
    """An English SPLADE."""
    c = with_flops(stage())
    c.model.head = "splade"
    c.model.family = "bert"
    c.tokenizer = "embedded:english"
    c.init.lexical = True
    c.data.query_languages = {"en": 1}
    c.steps = 300
    return c


def align() -> ConfigDict:
    """The encoder of most heads: the teacher's layers, words translated."""
    c = stage()
    c.tokenizer = "embedded:multilingual"
    c.init.head = {"model": "stage:teacher", "encoder": "translations"}
    c.teacher.model = "stage:teacher"
    c.data.document_languages = get_default().data.document_languages
    c.loss = {"alignment": {}}
    c.optim.lr = 3e-5
    c.steps = 50
    return c


def student(head: str) -> ConfigDict:
    """A head on the encoder of `align`."""
    c = stage()
    c.model.head = head
    c.init.encoder = "stage:align"
    c.data.query_languages = {"en": 0.2, "*": 1}
    return c


def with_flops(c: ConfigDict) -> ConfigDict:
    """FLOPS regularization of both sides, with a rising weight."""
    c.regularizer.name = "flops"
    c.regularizer.query = c.regularizer.document = 1e-3
    c.regularizer.schedule = entry("quadratic", steps=100)
    return c


def own_words(head: str) -> ConfigDict:
    """A head that starts as a bag of the text's own words."""
    c = student(head)
    c.init.encoder = ""
    c.tokenizer = "embedded:multilingual"
    c.init.lexical = True
    return c


def splade() -> ConfigDict:
    """SPLADE over the multilingual vocabulary."""
    return with_flops(own_words("splade"))


def inference_free() -> ConfigDict:
    """The same, with a learned weight for each word of a query."""
    c = splade()
    c.model.head.queries = "static"
    c.init.idf_queries = True
    c.regularizer.query = 0.0
    return c


def deepimpact() -> ConfigDict:
    """Weights of a document's tokens; queries are bags of words."""
    c = student("token_weights")
    c.model.head.queries = "words"
    return c


def dense(head: str) -> ConfigDict:
    """The mean of the tokens' states."""
    c = student(head)
    c.model.head.pooling = "mean"
    c.loss = {"infonce": {"temperature": 0.05}}
    return c


def adapted(**adapters) -> ConfigDict:
    """The dense model, of which only what adapters add is trained."""
    c = dense("dense")
    c.adapt = adapters
    c.optim.lr *= 10
    return c


def hybrid() -> ConfigDict:
    """A dense embedding, scaled to length 1, and SPLADE's terms."""
    c = with_flops(own_words("hybrid"))
    c.model.head.embedding_pooling = "mean"
    c.model.head.view_weights = (5.0, 1.0)
    return c


def aggretriever() -> ConfigDict:
    """SPLADE's vocabulary pooled into 256 numbers, beside 64 of the first token."""
    c = own_words("aggretriever")
    c.model.head.semantic_size, c.model.head.lexical_size = 64, 256
    return c


def csr() -> ConfigDict:
    """64 of 1,024 latents of the dense model's embedding."""
    c = dense("csr")
    c.init.encoder = "stage:dense"
    c.model.head.latents = 1024
    c.model.head.active_latents = 64
    c.loss = {"reconstruction": {}, "infonce": {"temperature": 0.05}}
    return c


def colbert(head: str) -> ConfigDict:
    """32 numbers for each token."""
    c = student(head)
    c.model.head.embedding_size = 32
    c.loss = {"infonce": {"temperature": 0.2}}
    return c


def m3() -> ConfigDict:
    """Dense, token weights and ColBERT together."""
    c = colbert("m3")
    c.loss = {"m3": {"temperature": 0.05}}
    return c


def milco() -> ConfigDict:
    """Both views."""
    c = student("milco")
    c.init.encoder = ""
    c.init.model = "stage:align"
    c.init.idf_echo = {"scale": 0.6}
    c.model.head.lexecho = True
    c.model.head.repeats = "max"
    c.model.head.exclude_special_tokens = True
    c.regularizer.query = 3e-4
    c.regularizer.document = 3e-5
    c.optim.lr = 3e-4
    return c
