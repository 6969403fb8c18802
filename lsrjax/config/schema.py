"""Every field of a run, once: its type, default, range and meaning."""

import dataclasses
import math
import re
from typing import Any, ClassVar

from lsrjax.config.nodes import Adapters, Initialisations, Losses, Trackers
from lsrjax.data.batching.mixing import MIXERS
from lsrjax.data.batching.negatives import SAMPLERS
from lsrjax.data.examples import ANY
from lsrjax.data.reading.corpus import problem as places_problem
from lsrjax.data.reading.format_options import NORMALIZATIONS
from lsrjax.data.reading.formats import AUTO, FORMATS
from lsrjax.data.sources import DEV_SOURCES, SOURCES
from lsrjax.initial.initialisations import INITIALISATIONS
from lsrjax.losses.regularizers import REGULARIZERS
from lsrjax.losses.table import LOSSES
from lsrjax.models.adapters import ADAPTERS
from lsrjax.models.backbones.encoder import REMAT
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.cross_encoder import Question
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import TOWERS
from lsrjax.optimizers import OPTIMIZERS
from lsrjax.options import bad_pattern, option
from lsrjax.retrieval.tasks.table import DEV_TASKS
from lsrjax.tokenizer import ends
from lsrjax.trackers.table import TRACKERS


def _devices(value: int) -> str | None:
    if value < 1 and value != -1:
        return "it is a number of devices, or -1 for the rest"
    return None


def _share(value: float) -> str | None:
    if value < 0 and value != -1:
        return "it is a share >= 0, or -1 for that of the checkpoint"
    return None


def _jump(value: float) -> str | None:
    if 0 < value <= 1:
        return (
            "times the median that half of all losses are above: give a number above 1,"
            " or 0 for none"
        )
    return None


def _tokens(value: int) -> str | None:
    return "two tokens of a text are special, so it must be >= 3" if value < 3 else None


def _weights(weights: dict[str, float]) -> str | None:
    fine = all(0 <= weight < math.inf for weight in weights.values())
    return None if fine and any(weights.values()) else "weights are >= 0, one is > 0"


def _positive(weights: dict[str, float]) -> str | None:
    fine = all(0 < weight < math.inf for weight in weights.values())
    return None if fine else "weights are > 0"


def _groups(groups: dict[str, dict[str, float]]) -> str | None:
    for pattern, own in groups.items():
        if (problem := bad_pattern(pattern)) or not pattern:
            return f"{pattern!r} is {problem or 'empty'}"
        if not own or set(own) - {"lr", "times", "weight_decay"}:
            known = "times or lr, and weight_decay"
            return f"{pattern!r} sets {list(own) or 'nothing'}; give it {known}"
        if {"lr", "times"} <= set(own):
            return f"{pattern!r} has a learning rate and a multiple of it; give one"
        rate = own.get("lr", own.get("times", 1.0))
        if not (0 < rate < math.inf and 0 <= own.get("weight_decay", 0.0) < math.inf):
            return f"{pattern!r}: lr and times must be > 0, weight_decay >= 0"
    return None


def _repository(value: str) -> str | None:
    if not value or re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", value):
        return None
    return "give the id of a repository, such as 'me/model'"


# What the choice of a query's documents has an effect with.
_DRAWN = ("ranking loss", "several documents")


def _negatives(value: str) -> str | None:
    if value in ("given", "bm25") or re.fullmatch("stage:.+", value):
        return None
    return "choose from 'given', 'bm25' and 'stage:NAME'"


@dataclasses.dataclass(frozen=True)
class Model:
    """The retriever."""

    head: Any = option("milco", "from hidden states to views", table=HEADS)
    towers: str = option(
        "shared",
        "shared (an encoder and head for all texts) | separate (queries have their own,"
        " which start from the same weights; query_tower/… in optim.freeze and"
        " no_decay)",
        choices=TOWERS,
        when=("ranking loss", "encoded queries"),
    )
    dtype: str = option(
        "float32", "of matrix products", choices=("float32", "bfloat16")
    )
    query_prompt: str = option("", "text before every query", when="ranking loss")
    document_prompt: str = option("", "text before every document", when="ranking loss")
    query_marker: str = option(
        "",
        "token of the vocabulary behind a query's first one, or in front of it where"
        " the tokenizer begins no text with a special token",
        when="ranking loss",
    )
    document_marker: str = option("", "the same in documents", when="ranking loss")
    include_prompt: bool = option(
        True,
        "a prompt's or marker's tokens, and BOS before them, take part in the pooling;"
        " the encoder always reads them (as in sentence-transformers)",
        when=("ranking loss", "pooled tokens"),
    )
    add_bos: str = option(
        "",
        "texts begin with the tokenizer's bos_token or, without one, cls_token: yes |"
        " no; empty: as its files have it",
        choices=ends.CHOICES,
    )
    add_eos: str = option(
        "",
        "texts end with its eos_token or sep_token, which a decoder's pooling 'last'"
        " then reads; as add_bos",
        choices=ends.CHOICES,
    )
    family: Any = option(
        "xlm-roberta",
        "of the encoder, with random weights only (without init.encoder), as are the"
        " sizes below; one of your own may be named with weights, too",
        table=BACKBONES,
        when="read family",
    )
    language: str = option(
        "",
        "whose adapters all texts pass through, in a family that has some: one of the"
        " weights' languages, such as de_DE or de; stated: each text's own, as the data"
        " state it; empty: their default_language",
    )
    hidden_size: int = option(
        128, "of the encoder's states", above=0, high=2**16, when="fresh weights"
    )
    num_layers: int = option(
        2, "of the encoder", above=0, high=2**10, when="fresh weights"
    )
    num_heads: int = option(
        4, "of attention", above=0, high=2**10, when="fresh weights"
    )
    intermediate_size: int = option(
        512, "of a layer", above=0, high=2**18, when="fresh weights"
    )
    max_length: int = option(
        512,
        "tokens; sets the size of the position table",
        above=0,
        high=2**20,
        when="fresh weights",
    )
    attention: str = option(
        "",
        "of a decoder (Qwen3, Llama, Mistral, Gemma): causal | both (a token sees those"
        " after it too); empty: as what it starts from was made (config.json)",
        choices=("", "causal", "both"),
    )
    dropout: float = option(
        -1.0,
        "of hidden states and attention; -1: as what it starts from was made"
        " (config.json), and 0 with random weights",
        below=1,
        problem=_share,
    )


@dataclasses.dataclass(frozen=True)
class Teacher(Question):
    """The frozen English model."""

    model: str = option(
        "",
        "encodes each batch's texts (alignment, batch_kl and others) or scores all"
        " documents beforehand (prepare.scores; then also a cross-encoder: a sequence"
        " classifier with one label, or a decoder with a prompt, see"
        " docs/backbones.md)",
        when="asked teacher",
    )
    beside: dict[str, float] = option(
        {},
        "other models whose scores are averaged with the model's, by weight; its own is"
        ' 1: {"me/reranker": 2.0, "ngrams": 0.5}; bm25 and ngrams: BM25 over words, or'
        " over words and character n-grams, of the documents that are scored",
        problem=_positive,
        when="scoring teacher",
    )
    score_normalization: str = option(
        "none",
        "of each one's scores of a query's documents",
        choices=tuple(NORMALIZATIONS),
        when="scoring teacher",
    )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training data: a source, and how its rows are read."""

    source: Any = option(
        "files", "where examples come from", table=SOURCES, when="one set"
    )
    format: Any = option(AUTO, "of rows", table=FORMATS, when="one set")
    corpus: str | list[Any] | dict[str, Any] = option(
        "",
        "of ids, and to mine from: files of documents (.jsonl, .tsv, .csv, .parquet) or"
        ' data sets of `datasets`, {"dataset": "me/docs", "subset": "…", "split": "…"}'
        " (both may be left out); one or a list, or a dict of these by language",
        problem=places_problem,
        when="one set",
    )
    group_size: int = option(
        0,
        "of a set in data.sets: documents of a query, if others than data.group_size;"
        " with batches_from = one",
        low=0,
        high=2**16,
    )


@dataclasses.dataclass(frozen=True)
class Data(Rows):
    """Training data, and how batches are made of it."""

    because: ClassVar = {"sets": "data.sets is empty"}
    sets: dict[str, Rows] = option(
        {},
        "several data sets instead, by name: data_set(source=…, format=…, corpus=…,"
        " group_size=…)",
    )
    mixer: Any = option("proportional", "of sets", table=MIXERS, when="sets")
    batches_from: str = option(
        "mixed",
        "mixed | one (a batch is of one of the sets) | language (its queries, of pairs"
        " its translations, are of one language, and of one set)",
        choices=("mixed", "one", "language"),
        when="parts of batches",
    )
    language_temperature: float = option(
        1.0,
        "T: languages of a set have shares of weight x examples^(1 / T); 1: as they"
        " are, inf: all the same (1 / alpha of XLM-R)",
        above=0,
        infinite=True,
        when="shares of languages",
    )
    topics: int = option(
        0,
        "clusters of queries, at most; a batch is of one (TAS-B); 0: off",
        low=0,
        when="ranking loss",
    )
    unique_texts: bool = option(
        False,
        "no query or positive text twice in a batch, which in-batch negatives would"
        " take for a negative",
        when="ranking loss",
    )
    query_length: int = option(64, "tokens", problem=_tokens)
    document_length: int = option(
        256, "tokens; for pairs: of either text", problem=_tokens
    )
    length_parts: int = option(
        10,
        "a device's texts (of each role, where they are encoded apart) are cut into at"
        " most this many parts by length",
        above=0,
        high=2**10,
    )
    length_multiple: int = option(
        4, "tokens; each part is padded to a multiple of it", above=0
    )
    group_size: int = option(
        1,
        "documents of a query: positives and hard negatives",
        above=0,
        high=2**16,
        when="ranking loss",
    )
    positives: int = option(1, "of the documents", above=0, when=_DRAWN)
    negatives: Any = option("random", "which of a row's", table=SAMPLERS, when=_DRAWN)
    negative_max_score: float = option(
        math.inf,
        "highest teacher's score of a negative; those above are left out, as likely"
        " positives; inf: any",
        infinite=True,
        when=_DRAWN,
    )
    negative_margin: float = option(
        -math.inf,
        "by how much a negative's score is below the positive's, at least; -inf: any",
        infinite=True,
        when=_DRAWN,
    )
    short_rows: str = option(
        "bad",
        "of rows with fewer negatives than group_size needs: bad (they are bad records)"
        " | repeat (drawn with replacement)",
        choices=("bad", "repeat"),
        when=(*_DRAWN, "few negatives"),
    )
    mixing: str = option(
        "passages",
        "debian, corpus: a language is drawn for each document: passages | for all"
        " documents of a query: entries | the query's, or one drawn for a document that"
        " lacks it: query | every query comes in all of document_languages:"
        " round_robin",
        choices=("passages", "entries", "query", "round_robin"),
        when=("document languages", *_DRAWN),
    )
    query_languages: dict[str, float] = option(
        {ANY: 1.0},
        "weights by language; * = any other language; of rows that name their"
        " language, of the rows",
        problem=_weights,
        when="query languages",
    )
    document_languages: dict[str, float] = option(
        {ANY: 1.0},
        "debian, corpus: the same, for documents",
        problem=_weights,
        when=("document languages", "ranking loss"),
    )
    bad_records: float = option(
        0.001,
        "share of a data set's records, and of texts by id, that may be bad: others"
        " take their places, bad_records.jsonl names them; 0: none",
        low=0,
        below=1,
        when="rows read",
    )
    threads: int = option(2, "that read and tokenize", above=0, high=2**10)
    prefetch: int = option(16, "batches held ready", above=0, high=2**16)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Negatives and scores that are made before the first step, and on the way."""

    because: ClassVar = {"mines": "negatives is given"}
    negatives: str = option(
        "given",
        "given (by the data) | bm25 (mined from data.corpus, or from the documents of"
        " all rows without one) | stage:NAME (the same by the model of an earlier"
        " stage)",
        problem=_negatives,
        when=_DRAWN,
    )
    every: int = option(
        0,
        "steps: mined again with the stage's own model (ANCE; with frozen documents,"
        " ADORE), and scored again if scores is teacher; 0: never",
        low=0,
        when="mines",
    )
    scores: str = option(
        "given",
        "given | teacher (teacher.model scores every document)",
        choices=("given", "teacher"),
        when="scores read",
    )
    count: int = option(
        7, "mined: negatives kept for a query", above=0, high=2**16, when="mines"
    )
    depth: int = option(
        50,
        "mined: drawn from this many best documents",
        above=0,
        high=2**20,
        when="mines",
    )

    @property
    def mines(self) -> bool:
        """Whether negatives are mined."""
        return self.negatives != "given"


@dataclasses.dataclass(frozen=True)
class DRO:
    """Group DRO: queries of groups with a high loss count more."""

    because: ClassVar = {"on": "groups is empty"}
    groups: str = option(
        "",
        "languages (of the queries) | sets (data.sets) | topics (data.topics); empty:"
        " every query counts the same",
        choices=("", "languages", "sets", "topics"),
        when="ranking loss",
    )
    rate: float = option(
        0.01,
        "in a step, a group's weight grows by e to the power of this times its loss,"
        " relative to the others",
        above=0,
        when="on",
    )

    @property
    def on(self) -> bool:
        """Whether groups are weighed."""
        return bool(self.groups)


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimizer, its schedule, and which parameters it changes."""

    optimizer: Any = option(
        "adamw", "from gradients to a step; docs/training.md", table=OPTIMIZERS
    )
    lr: float = option(2e-5, "peak learning rate", above=0)
    schedule: str = option(
        "cosine", "after the warm-up", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = option(0, "up to the peak", low=0)
    warmup_fraction: float = option(
        0.0, "of all steps; instead of warmup_steps", low=0, below=1
    )
    weight_decay: float = option(
        0.01, "decoupled: times the learning rate, off the parameters", low=0
    )
    no_decay: str = option(
        r"bias$|norm/|scale$",
        "parameter paths (regex) without decay",
        problem=bad_pattern,
        when="weight_decay",
    )
    groups: dict[str, dict[str, float]] = option(
        {},
        "parameters with their own learning rate (lr, or as times that of all) and"
        ' weight_decay, by paths (regex): {"^head/static$": {"lr": 1e-3}}',
        problem=_groups,
    )
    clip_norm: float = option(1.0, "global gradient norm; 0: no clipping", low=0)
    freeze: str = option(
        "",
        "parameter paths (regex) that stay as they are",
        problem=bad_pattern,
        when="trained weights",
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How work is divided over devices; it changes no result."""

    data: int = option(
        -1, "devices that texts are divided over; -1: the rest", problem=_devices
    )
    model: int = option(
        1,
        "devices that heads, inner widths and vocabularies are divided over",
        problem=_devices,
    )
    fsdp: bool = option(False, "divide parameters and optimizer state over data, too")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Recomputes instead of storing, to save memory; it changes no result."""

    encode_chunk: int = option(
        0,
        "texts that a device encodes at a time, encoding them again in the backward"
        " pass; 0: all at once",
        low=0,
    )
    remat: str = option(
        "none",
        "what a layer's backward pass computes again: none | dots (all but products"
        " with parameters) | layer (all); not none: the layers run as a loop, which"
        " compiles sooner and costs a copy of their parameters",
        choices=tuple(REMAT),
    )


@dataclasses.dataclass(frozen=True)
class Dev:
    """Retrieval on held-out examples, or on a benchmark, during training.

    Examples are searched for in the whole corpus if they contain ids (format beir and
    others), else among their own documents.
    """

    because: ClassVar = {"given": "dev.source is empty, and so is dev.task"}
    source: Any = option("", "as data.source; empty: no evaluation", table=DEV_SOURCES)
    format: Any = option(AUTO, "as data.format", table=FORMATS, when="given")
    task: Any = option(
        "",
        "instead of source: a benchmark, whole, as `lsrjax evaluate` has it;"
        " docs/evaluation.md",
        table=DEV_TASKS,
    )
    every: int = option(0, "steps; 0: at the end only", low=0, when="given")
    queries: int = option(300, "of source: at most", above=0, when="given")
    metric: str = option(
        "nDCG@10",
        "any name ir_measures knows; says which checkpoint is the best",
        when="given",
    )
    over: str = option(
        "queries",
        "the metric's mean over all queries | mean (of the languages' means) | worst"
        " (the lowest of them); of a benchmark in one language, its data sets",
        choices=("queries", "mean", "worst"),
        when="given",
    )
    patience: int = option(
        0,
        "evaluations below the best one that end the stage; 0: none do; it then stands"
        " for its last step, unless checkpoint.use is best",
        low=0,
        when="given",
    )

    @property
    def given(self) -> bool:
        """Whether there is dev data."""
        return bool(self.source.name or self.task.name)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved."""

    every: int = option(500, "steps", above=0)
    keep: int = option(2, "last checkpoints, and the best", above=0, high=2**16)
    use: str = option(
        "last",
        "what opens the finished stage takes: the last checkpoint, or the best by"
        " dev.metric",
        choices=("last", "best"),
        when="dev data",
    )
    on_full_disk: str = option(
        "stop",
        "a checkpoint that would not fit: stop, or go_on without it (all but the last)",
        choices=("stop", "go_on"),
    )
    push: str = option(
        "",
        "repository of the Hugging Face hub, as me/model, that gets the model in the"
        " format of its library, with a card; made, private, if there is none",
        problem=_repository,
    )
    push_when: str = option(
        "end",
        "end (the one in use) | every (each) | best (each that dev.metric puts first)",
        choices=("end", "every", "best"),
        when="push",
    )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The policy for numbers that are not finite, and for losses that jump."""

    because: ClassVar = {"goes_on": "policy is stop"}
    policy: str = option(
        "stop",
        "stop | skip (the step changes nothing) | roll_back (to the last checkpoint;"
        " from there on without the batch, which the stage's left_out.json names)",
        choices=("stop", "skip", "roll_back"),
    )
    most: int = option(
        10, "skip: steps in a row; roll_back: batches in all; then stop", above=0
    )
    spike: float = option(
        0.0,
        "a loss jumps if it is above this many times the median of the 32 steps"
        " before; 0: never",
        low=0,
        problem=_jump,
    )

    @property
    def goes_on(self) -> bool:
        """Whether a run may go on after bad numbers."""
        return self.policy != "stop"


@dataclasses.dataclass(frozen=True)
class Watchdog:
    """Ends all processes if one hangs."""

    seconds: float = option(
        1800.0,
        "of a step, or a batch of an evaluation, at most; not while the step is"
        " compiled; 0: off",
        low=0,
        high=10**9,
    )


@dataclasses.dataclass(frozen=True)
class Log:
    """What is logged."""

    every: int = option(10, "steps", above=0)
    health: bool = option(
        False,
        "also: terms that no text of a batch uses; the share of the weights on terms"
        " that are not in the text; active terms by language",
        when="sparse views",
    )
    texts: int = option(
        3,
        "queries of the dev data, and as many documents, whose strongest terms are"
        " kept at each evaluation (texts.jsonl, trackers); 0: none",
        low=0,
        high=1000,
        when=("dev data", "sparse views"),
    )
    trackers: Trackers = option(
        {},
        'of the whole run: names, ("tensorboard", "mlflow"), or a dict of these with'
        " their options; docs/logging.md",
        table=TRACKERS,
    )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The evaluation of a finished run."""

    test: str = option(
        "",
        "debian: the table over systems and languages; empty: none",
        choices=("", "debian"),
    )
    split: str = option(
        "test",
        "of the embedded texts, which the table is of: test | dev (to choose settings)",
        choices=("test", "dev"),
        when="test",
    )
    tasks: dict[str, Any] = option(
        {},
        "benchmarks that the last stage's model is evaluated on, by name with their"
        " options, {'miracl': {'languages': ('sw',)}}; docs/evaluation.md",
    )
    examples: tuple[str, ...] = option(
        (),
        "languages, as in ('ja', 'de'), of which to show a query with its terms",
        when="test",
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or one of its stages."""

    seed: int = option(
        0,
        "of initial weights, data order, draws and dropout; a run's is added to those"
        " of its stages",
        low=0,
    )
    stages: dict[str, "Run"] = option(
        {},
        "stages by name, in order, each a config like this one; a config without is"
        " itself the only stage",
    )
    model: Model = dataclasses.field(default_factory=Model)
    tokenizer: str = option(
        "",
        "folder, hub id or embedded:{english,multilingual}; empty: the one beside"
        " init.encoder or init.model",
    )
    init: Initialisations = option(
        {},
        'where weights come from, in place of noise: {"encoder": {"model": "…"}}, or'
        ' with the model alone, {"encoder": "…"}',
        table=INITIALISATIONS,
    )
    adapt: Adapters = option(
        {},
        'what is trained while all weights stay as they are: {"lora": {"rank": 16}},'
        " or {}: the weights are trained",
        table=ADAPTERS,
    )
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    data: Data = dataclasses.field(default_factory=Data)
    prepare: Prepare = dataclasses.field(default_factory=Prepare)
    loss: Losses = option(
        {"kl": {}},
        'losses by name, each with its options: {"kl": {}, "margin_mse": {"weight":'
        " 0.05}}; their weighted sum, of the same texts",
        table=LOSSES,
    )
    dro: DRO = dataclasses.field(default_factory=DRO)
    regularizer: Any = option(
        "l1", "of the weights of terms, with its lambdas", table=REGULARIZERS
    )
    optim: Optim = dataclasses.field(default_factory=Optim)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    memory: Memory = dataclasses.field(default_factory=Memory)
    batch_size: int = option(
        64,
        "examples (queries or pairs) in the global batch; round_robin: a query counts"
        " once for each language",
        above=0,
        high=2**20,
    )
    steps: int = option(0, "optimizer steps; or give epochs", low=0)
    epochs: float = option(0.0, "over the training data", low=0, high=10**6)
    dev: Dev = dataclasses.field(default_factory=Dev)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    numbers: Numbers = dataclasses.field(default_factory=Numbers)
    watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)
    log: Log = dataclasses.field(default_factory=Log)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
