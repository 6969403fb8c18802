"""Every field of a run, once: its type, default, range and meaning."""

import dataclasses
import math
import re
from typing import Any

from lsrjax.config.nodes import Losses
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.reading.teacher_ensembles import NORMALIZATIONS
from lsrjax.data.sources import SOURCES
from lsrjax.losses.regularizers import REGULARIZERS
from lsrjax.models.backbones.bert import REMAT
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import TOWERS
from lsrjax.options import option


def _pattern(value: str) -> str | None:
    try:
        re.compile(value)
    except re.error as error:
        return f"not a regular expression ({error})"
    return None


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


def _wordings(value: tuple) -> str | None:
    if not value or not all(field in ("title", "text") for field in value):
        return "choose from ('title', 'text')"
    return None


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
    )
    dtype: str = option(
        "float32", "of matrix products", choices=("float32", "bfloat16")
    )
    query_prompt: str = option("", "text before every query")
    document_prompt: str = option("", "text before every document")
    query_marker: str = option("", "token of the vocabulary behind a query's first one")
    document_marker: str = option("", "the same in documents")
    family: str = option(
        "xlm-roberta",
        "with random weights only (init.encoder is empty), as are the sizes below",
        choices=("bert", "xlm-roberta"),
    )
    hidden_size: int = option(128, "of the encoder's states", above=0, high=2**16)
    num_layers: int = option(2, "of the encoder", above=0, high=2**10)
    num_heads: int = option(4, "of attention", above=0, high=2**10)
    intermediate_size: int = option(512, "of a layer", above=0, high=2**18)
    max_length: int = option(
        512, "tokens; sets the size of the position table", above=0, high=2**20
    )
    dropout: float = option(
        -1.0,
        "of hidden states and attention; -1: as what it starts from was made"
        " (config.json), and 0 with random weights",
        below=1,
        problem=_share,
    )


@dataclasses.dataclass(frozen=True)
class Init:
    """Where weights come from.

    A model is named by a Hugging Face folder or hub id, by a stage's folder in a work
    directory, or as stage:NAME, a stage of this run.
    """

    model: str = option(
        "", "a stage's whole retriever; parameters it lacks start fresh"
    )
    encoder: str = option("", "an encoder; empty: random weights of the model's sizes")
    head: str = option("", "milco: the masked LM or SPLADE whose head is copied")
    static: str = option(
        "ones",
        "static queries: ones | idf (of the training documents)",
        choices=("ones", "idf"),
    )
    lexical: bool = option(
        False, "splade: start as a weighted bag of the text's own words"
    )
    from_pivot: str = option(
        "",
        "milco: start the encoder from init.head's layers and its embeddings: shared"
        " (of tokens in both vocabularies) | translations (of the words that each token"
        " translates to in the training pairs; then those shared)",
        choices=("", "shared", "translations"),
    )
    echo: str = option(
        "random",
        "lexecho: random (reference) | idf, fitted to the tokens' inverse document"
        " frequency",
        choices=("random", "idf"),
    )
    echo_scale: float = option(
        0.5, "idf: a token starts at echo_scale * sqrt(its idf)", above=0
    )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The frozen English model."""

    model: str = option(
        "",
        "of views (alignment) or of scores (then also a cross-encoder: a BERT or XLM-R"
        " sequence classifier with one label)",
    )


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of the file's columns."""

    english: str = option("english", "of pairs")
    translation: str = option("non_english", "of pairs")
    language: str = option("language", "of pairs")
    query: str = option("query", "of queries with documents")
    pos: str = option("pos", "of queries with documents")
    neg: str = option("neg", "of queries with documents")
    pos_scores: str = option("pos_scores", 'of several teachers: "a_pos,b_pos"')
    neg_scores: str = option("neg_scores", 'in the same order: "a_neg,b_neg"')


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training data: a source, and how its rows are read."""

    source: str = option(
        "files", "files | datasets | tfds | debian (embedded)", choices=tuple(SOURCES)
    )
    files: str = option(
        "",
        "files: paths, folders or globs with commas between, of Parquet, JSONL (maybe"
        " packed: .gz, .zst, .bz2), CSV or TSV; or a BEIR folder",
    )
    dataset: str = option(
        "",
        "datasets: folders of save_to_disk, clones of hub data sets or hub ids, with"
        ' commas between, each with its subsets: "a/b, c/d:en-de+en-fr"; tfds: a data'
        " set's name/config or folder",
    )
    split: str = option("train", "datasets, tfds, debian; format beir: of judgements")
    format: str = option(
        "auto",
        "by the columns, or a name in data/reading/formats.py",
        choices=("auto", *FORMATS),
    )
    corpus: str = option(
        "",
        "of ids, and to mine from: files of documents (.jsonl, .tsv, .csv, .parquet),"
        ' maybe in several languages: "en:docs.en.tsv,de:docs.de.tsv"; or data sets of'
        ' `datasets`: "datasets:FOLDER", "en:datasets:me/docs:SUBSET:SPLIT" (both'
        " may be left out)",
    )
    queries: str = option("", "format colbert: the same, of queries")
    min_label: float = option(
        0.5, "format labelled: rows below this label are left out"
    )
    fields: tuple[str, ...] = option(
        ("title", "text"), "debian pairs: which wordings to align", problem=_wordings
    )
    columns: Columns = dataclasses.field(default_factory=Columns)
    score_weights: str = option("", 'of several teachers: "2,1"; empty: all the same')
    score_normalization: str = option(
        "none",
        "of a teacher's scores of a query's documents",
        choices=tuple(NORMALIZATIONS),
    )


@dataclasses.dataclass(frozen=True)
class DataSet(Rows):
    """One of several data sets, which has its own source, files and columns."""

    weight: float = option(1.0, "data.mixer weights: its share of the draws", above=0)


@dataclasses.dataclass(frozen=True)
class Data(Rows):
    """Training data, and how batches are made of it."""

    sets: dict[str, DataSet] = option(
        {}, "several data sets instead: name -> data_set(source=…, files=…, weight=…)"
    )
    mixer: str = option(
        "proportional",
        "of sets: round_robin | proportional (to their examples) | temperature |"
        " weights (as each set says)",
    )
    mix_temperature: float = option(
        2.0, "mixer temperature: examples^(1 / it); 1: proportional", above=0
    )
    batches_from: str = option(
        "mixed",
        "of sets: mixed | one (a batch is of one set)",
        choices=("mixed", "one"),
    )
    topics: int = option(
        0,
        "clusters of queries, at most; a batch is of one (TAS-B); 0: off",
        low=0,
    )
    unique_texts: bool = option(
        False,
        "no query or positive text twice in a batch, which in-batch negatives would"
        " take for a negative",
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
        1, "documents of a query: positives and hard negatives", above=0, high=2**16
    )
    positives: int = option(1, "of the documents", above=0)
    negatives: str = option(
        "random",
        "which of a row's: random | top (its first ones) | rank (random, its first ones"
        " more likely) | margin_bins (TAS-B: random over the margins between the"
        " teacher's scores of positive and negative)",
    )
    negative_rank_scale: float = option(
        10.0, "rank: e times less likely after this many ranks", above=0
    )
    margin_bins: int = option(10, "margin_bins: their number, of equal width", above=0)
    negative_max_score: float = option(
        math.inf,
        "highest teacher's score of a negative; those above are left out, as likely"
        " positives; inf: any",
        infinite=True,
    )
    negative_margin: float = option(
        -math.inf,
        "by how much a negative's score is below the positive's, at least; -inf: any",
        infinite=True,
    )
    short_rows: str = option(
        "bad",
        "of rows with fewer negatives than group_size needs: bad (they are bad records)"
        " | repeat (drawn with replacement)",
        choices=("bad", "repeat"),
    )
    mixing: str = option(
        "passages",
        "debian, corpus: a language is drawn for each document: passages | for all"
        " documents of a query: entries | every query comes in all of"
        " document_languages: round_robin",
        choices=("passages", "entries", "round_robin"),
    )
    query_languages: str = option("*:1", "language:weight,…; * = any other language")
    document_languages: str = option("*:1", "debian, corpus: the same, for documents")
    bad_records: float = option(
        0.001,
        "share of a data set's records, and of texts by id, that may be bad: others"
        " take their places, bad_records.jsonl names them; 0: none",
        low=0,
        below=1,
    )
    threads: int = option(2, "that read and tokenize", above=0, high=2**10)
    prefetch: int = option(16, "batches held ready", above=0, high=2**16)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Negatives and scores that are made before the first step, and on the way."""

    negatives: str = option(
        "given",
        "given (by the data) | bm25 (mined from data.corpus, or from the documents of"
        " all rows without one) | stage:NAME (the same by the model of an earlier"
        " stage)",
        problem=_negatives,
    )
    every: int = option(
        0,
        "steps: mined again with the stage's own model (ANCE; with frozen documents,"
        " ADORE), and scored again if scores is teacher; 0: never",
        low=0,
    )
    scores: str = option(
        "given",
        "given | teacher (teacher.model scores every document)",
        choices=("given", "teacher"),
    )
    count: int = option(7, "mined: negatives kept for a query", above=0, high=2**16)
    depth: int = option(
        50, "mined: drawn from this many best documents", above=0, high=2**20
    )


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW and its schedule."""

    lr: float = option(2e-5, "peak learning rate", above=0)
    schedule: str = option(
        "cosine", "after the warm-up", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = option(0, "up to the peak", low=0)
    warmup_fraction: float = option(
        0.0, "of all steps; instead of warmup_steps", low=0, below=1
    )
    b1: float = option(0.9, "of the mean of gradients", low=0, below=1)
    b2: float = option(0.999, "of the mean of their squares", low=0, below=1)
    eps: float = option(1e-8, "added to the root of the squares", above=0)
    weight_decay: float = option(0.01, "decoupled", low=0)
    no_decay: str = option(
        r"bias$|norm/|scale$",
        "parameter paths (regex) without decay",
        problem=_pattern,
    )
    clip_norm: float = option(1.0, "global gradient norm; 0: no clipping", low=0)
    freeze: str = option(
        "", "parameter paths (regex) that stay as they are", problem=_pattern
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
    """Retrieval on held-out examples during training.

    Over the whole corpus if they contain ids (format beir and others), else over their
    own documents.
    """

    source: str = option(
        "", "as data.source; empty: no evaluation", choices=("", *SOURCES)
    )
    files: str = option("", "as data.files")
    dataset: str = option("", "as data.dataset")
    split: str = option("dev", "as data.split")
    format: str = option("auto", "as data.format", choices=("auto", *FORMATS))
    every: int = option(0, "steps; 0: at the end only", low=0)
    queries: int = option(300, "at most", above=0)
    metric: str = option(
        "nDCG@10", "any name ir_measures knows; picks the best checkpoint"
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved."""

    every: int = option(500, "steps", above=0)
    keep: int = option(2, "last checkpoints, and the best", above=0, high=2**16)
    on_full_disk: str = option(
        "stop",
        "a checkpoint that would not fit: stop, or go_on without it (all but the last)",
        choices=("stop", "go_on"),
    )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The policy for numbers that are not finite, and for losses that jump."""

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
    )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The evaluation of a finished run."""

    test: str = option(
        "",
        "debian: the table over systems and languages; empty: none",
        choices=("", "debian"),
    )
    examples: tuple[str, ...] = option(
        (), "languages, as in ('ja', 'de'), of which to show a query with its terms"
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or one of its stages."""

    seed: int = option(0, "of initial weights, data order, draws and dropout", low=0)
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
    init: Init = dataclasses.field(default_factory=Init)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    data: Data = dataclasses.field(default_factory=Data)
    prepare: Prepare = dataclasses.field(default_factory=Prepare)
    loss: Losses = option(
        {"kl": {}},
        'losses by name, each with its options: {"kl": {}, "margin_mse": {"weight":'
        " 0.05}}; their weighted sum, of the same texts",
    )
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
