"""MILCO from nothing, on real text in 13 languages, in minutes on a laptop.

    lsrjax train --config demo

Three stages on the embedded Debian descriptions, from random weights: an English
SPLADE teacher, sparse alignment of a multilingual student, and contrastive training
with LexEcho. Beside its small encoder the student has tables of translations and of
n-grams, which are trained as well. Then baselines, the teacher and the student after
both stages are compared.
"""

from ml_collections import ConfigDict

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry


def get_config() -> ConfigDict:
    c = get_default()
    c.stages = {"teacher": teacher(), "align": align(), "contrast": contrast()}
    c.evaluate.test = "debian"
    c.evaluate.examples = ("ja", "ru", "ko", "zh", "fr")
    return c


def stage() -> ConfigDict:
    """What the three stages share."""
    c = get_default()
    c.data.source = "debian"
    c.data.query_length = 24
    c.data.document_length = 64
    # So few steps do not earn the compilation of many parts.
    c.data.length_parts = 6
    c.batch_size = 64
    c.optim.schedule = "linear"
    c.checkpoint.every = 100
    c.dev.source = "debian"
    c.dev.every = 200
    return c


def teacher() -> ConfigDict:
    """An English SPLADE: title -> text, in-batch InfoNCE and FLOPS."""
    c = stage()
    c.model.head = "splade"
    c.model.family = "bert"
    c.tokenizer = "embedded:english"
    c.init.lexical = True
    c.data.query_languages = {"en": 1}
    c.data.document_languages = {"en": 1}
    c.loss = {"infonce": {}}
    c.regularizer.name = "flops"
    c.regularizer.query = 1e-3
    c.regularizer.document = 1e-3
    c.regularizer.schedule = entry("quadratic", steps=100)
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 20
    c.steps = 300
    return c


def align() -> ConfigDict:
    """MILCO stage 1: the student's pivot view imitates the teacher's on English.

    Tables of the likeliest English terms of tokens and of words' first letters stand
    beside the encoder, which learns what they lack.
    """
    c = stage()
    c.model.head.translations = 8
    c.model.head.stems = 2**17
    c.init.translations = {"scale": 2.5}
    c.optim.freeze = "head/(dictionary|stems)"
    c.tokenizer = "embedded:multilingual"
    c.init.head = {"model": "stage:teacher", "encoder": "translations"}
    c.teacher.model = "stage:teacher"
    c.loss = {"alignment": {}}
    c.optim.lr = 3e-5
    c.optim.warmup_steps = 20
    c.steps = 200
    return c


def contrast() -> ConfigDict:
    """MILCO stage 2, contrastive training with LexEcho, and a view of n-grams.

    InfoNCE compares each title with the English descriptions of the whole batch; other
    negatives and the teacher's scores add nothing here. English has three shares and
    every other language one, though most titles are in English alone. The tables learn
    at a far higher rate than the encoder: of their rows, a batch holds few.
    """
    c = stage()
    c.model.head.lexecho = True
    c.model.head.repeats = "max"
    c.model.head.exclude_special_tokens = True
    c.model.head.translations = 8
    c.model.head.stems = 2**17
    c.model.head.ngrams = 2**15
    c.init.model = "stage:align"
    c.init.idf_echo = {"scale": 0.3}
    c.init.ngrams = {"scale": 0.18}
    c.data.group_size = 1
    c.data.language_temperature = float("inf")
    c.data.query_languages = {"en": 3, "*": 1}
    c.data.document_languages = {"en": 8, "*": 1}
    c.loss = {"infonce": {"temperature": 0.6}}
    c.regularizer.query = 1e-5
    c.regularizer.document = 1e-6
    c.optim.lr = 1e-4
    c.optim.groups = {"head/(dictionary|stems|ngrams)/weights": {"lr": 2e-2}}
    c.optim.warmup_steps = 30
    c.batch_size = 128
    c.steps = 400
    return c
