"""Every field of a run, once; and the checks that run before anything is loaded."""

import difflib
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from lsrjax.data.sources import SOURCES
from lsrjax.errors import InputError
from lsrjax.losses import LOSSES
from lsrjax.models.heads import HEADS
from lsrjax.regularizers import REGULARIZERS, SCHEDULES


def get_default() -> ConfigDict:
    """One stage's config with every field at its default; unknown fields are errors."""
    c = ConfigDict(sort_keys=False)
    c.seed = 0  # of initial weights, data order, draws and dropout
    c.stages = ConfigDict(sort_keys=False)  # stages of a run by name, in order; each
    # a config like this one. A config without stages is itself the only stage.

    c.model = ConfigDict(sort_keys=False)
    c.model.head = "milco"  # splade | milco
    c.model.lexecho = False  # milco: add the source view
    c.model.repeats = "sum"  # lexecho: a token's repeats: sum (reference) | max
    c.model.exclude_special_tokens = False  # lexecho: leave <s>, </s>, … out
    c.model.pool_mask = "exclude"  # exclude | multiply (reference; padding matters)
    c.model.dtype = "float32"  # of matrix products: float32 | bfloat16
    c.model.tied = True  # splade: the decoder is the word embedding
    # Sizes, for random weights only (init.encoder is empty):
    c.model.family = "xlm-roberta"  # bert | xlm-roberta
    c.model.hidden_size = 128
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.model.intermediate_size = 512
    c.model.max_length = 512  # tokens; sets the size of the position table
    c.model.dropout = 0.0  # of hidden states and attention

    c.tokenizer = ""  # folder, hub id or embedded:{english,multilingual}; empty: the
    # one beside init.encoder or init.model

    # Where weights come from. A model is named by a Hugging Face folder or hub id, by
    # a stage's folder in a work directory, or as stage:NAME, a stage of this run.
    c.init = ConfigDict(sort_keys=False)
    c.init.model = ""  # a stage's whole retriever; parameters it lacks start fresh
    c.init.encoder = ""  # an encoder; empty: random weights of the sizes above
    c.init.head = ""  # milco: the masked LM or SPLADE whose head is copied
    c.init.lexical = False  # splade: start as a weighted bag of the text's own words
    c.init.from_pivot = ""  # milco: start the encoder from init.head's layers and its
    # embeddings: shared (of tokens in both vocabularies) | translations (of the words
    # that each token translates to in the training pairs; then those shared)
    c.init.echo = "random"  # lexecho: random (reference) | idf, fitted to the tokens'
    # inverse document frequency
    c.init.echo_scale = 0.5  # idf: a token starts at echo_scale * sqrt(its idf)

    c.teacher = ConfigDict(sort_keys=False)
    c.teacher.model = ""  # the frozen English model: of views (alignment) or of scores

    c.data = ConfigDict(sort_keys=False)
    c.data.source = "files"  # files | datasets | debian (embedded)
    c.data.files = ""  # files: path or glob of .parquet or .jsonl
    c.data.dataset = ""  # datasets: folder of save_to_disk, or hub id
    c.data.subset = ""  # datasets: the data set's configuration
    c.data.split = "train"  # datasets, debian: split
    c.data.fields = ("title", "text")  # debian pairs: which wordings to align
    c.data.columns = ConfigDict(sort_keys=False)  # what the file calls each field
    c.data.columns.english = "english"
    c.data.columns.translation = "non_english"
    c.data.columns.language = "language"
    c.data.columns.query = "query"
    c.data.columns.pos = "pos"
    c.data.columns.neg = "neg"
    c.data.columns.pos_scores = "pos_scores"
    c.data.columns.neg_scores = "neg_scores"
    c.data.query_length = 64  # tokens
    c.data.document_length = 256  # tokens; for pairs: of either text
    c.data.length_buckets = (16, 32, 64, 128, 256, 512)  # lengths of padded batches
    c.data.group_size = 1  # documents of a query: a positive and hard negatives
    c.data.mixing = "passages"  # a document's language: passages | entries
    c.data.query_languages = "*:1"  # language:weight,…; * = any other language
    c.data.document_languages = "*:1"  # the same, for documents
    c.data.window = 16  # batches sorted by length together; 1: no sorting
    c.data.threads = 2  # that read and tokenize
    c.data.prefetch = 16  # batches held ready

    c.prepare = ConfigDict(sort_keys=False)
    c.prepare.negatives = "given"  # given (by the data) | bm25 (mined from the corpus)
    c.prepare.scores = "given"  # given | teacher (teacher.model scores every document)
    c.prepare.count = 7  # bm25: negatives kept for a query
    c.prepare.depth = 50  # bm25: drawn from this many best documents

    c.loss = ConfigDict(sort_keys=False)
    c.loss.name = "kl"  # alignment | kl | infonce
    c.loss.temperature = 1.0  # kl, infonce

    c.regularizer = ConfigDict(sort_keys=False)
    c.regularizer.name = "l1"  # l1 | flops
    c.regularizer.query = 0.0  # lambda of queries, vocabulary view
    c.regularizer.document = 0.0  # lambda of documents, vocabulary view
    c.regularizer.source_query = 0.0  # lambda of queries, source view
    c.regularizer.source_document = 0.0  # lambda of documents, source view
    c.regularizer.schedule = "constant"  # constant | linear | quadratic
    c.regularizer.warmup_steps = 0  # linear, quadratic: steps up to the full lambda

    c.optim = ConfigDict(sort_keys=False)
    c.optim.lr = 2e-5  # peak learning rate
    c.optim.schedule = "cosine"  # constant | linear | cosine, after the warm-up
    c.optim.warmup_steps = 0
    c.optim.warmup_fraction = 0.0  # of all steps; instead of warmup_steps
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.01  # decoupled
    c.optim.no_decay = r"bias$|norm/|scale$"  # parameter paths (regex) without decay
    c.optim.clip_norm = 1.0  # global gradient norm; 0: no clipping
    c.optim.freeze = ""  # parameter paths (regex) that stay as they are

    c.batch_size = 64  # examples (queries or pairs) in the global batch
    c.steps = 0  # optimizer steps; or give epochs
    c.epochs = 0.0

    c.dev = ConfigDict(sort_keys=False)  # retrieval on held-out examples
    c.dev.source = ""  # as data.source; empty: no evaluation during training
    c.dev.files = ""
    c.dev.dataset = ""
    c.dev.subset = ""
    c.dev.split = "dev"
    c.dev.every = 0  # steps; 0: at the end only
    c.dev.queries = 300  # at most
    c.dev.metric = "nDCG@10"  # any name ir_measures knows; picks the best checkpoint

    c.checkpoint = ConfigDict(sort_keys=False)
    c.checkpoint.every = 500  # steps
    c.checkpoint.keep = 2  # last checkpoints, besides the best

    c.log = ConfigDict(sort_keys=False)
    c.log.every = 10  # steps

    c.evaluate = ConfigDict(sort_keys=False)  # of a finished run
    c.evaluate.test = ""  # debian: the table over systems and languages; empty: none
    c.evaluate.examples = ()  # languages of which to show a query with its terms
    return c.lock()


def stages(config: ConfigDict) -> dict[str, ConfigDict]:
    """The stages of a run in order; a config without stages is the stage `train`."""
    if len(config.stages):
        return {name: config.stages[name] for name in config.stages}
    return {"train": config}


def validate(config: ConfigDict) -> None:
    """Checks a run's config.

    Raises:
      InputError: an unknown field, value or combination, or an option that would have
        no effect; names the field and what to do.
    """
    default = get_default()
    _check_fields(config, default, "config")
    names = list(stages(config))
    for position, (name, stage) in enumerate(stages(config).items()):
        where = f"config.stages.{name}" if len(config.stages) else "config"
        _check_fields(stage, default, where)
        if len(config.stages) and len(stage.stages):
            raise InputError(f"{where}.stages: a stage cannot have stages of its own.")
        _check_stage(stage, default, where)
        _check_references(stage, names[:position], where)
    if len(config.stages):
        run_fields = ("seed", "stages", "evaluate")
        _no_effect(
            config,
            default,
            "config",
            [f for f in default if f not in run_fields],
            "the config has stages; set it in each stage",
        )


def _leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key in config:
        if isinstance(config[key], ConfigDict) and key != "stages":
            yield from _leaves(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config[key]


def _check_fields(config, default, where) -> None:
    known = dict(_leaves(default))
    found = dict(_leaves(config))
    for field in found:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0)[0]
            raise InputError(
                f"{where}.{field} is not a field; the nearest is {where}.{near}."
                " lsrjax/config.py lists them all."
            )
    for field in known:
        if field not in found:
            raise InputError(
                f"{where}.{field} is missing; start from lsrjax.config.get_default()."
            )


_CHOICES = {
    "model.head": tuple(HEADS),
    "model.repeats": ("sum", "max"),
    "model.pool_mask": ("exclude", "multiply"),
    "model.dtype": ("float32", "bfloat16"),
    "model.family": ("bert", "xlm-roberta"),
    "init.from_pivot": ("", "shared", "translations"),
    "init.echo": ("random", "idf"),
    "data.source": tuple(SOURCES),
    "data.mixing": ("passages", "entries"),
    "prepare.negatives": ("given", "bm25"),
    "prepare.scores": ("given", "teacher"),
    "dev.source": ("", *SOURCES),
    "loss.name": tuple(LOSSES),
    "regularizer.name": tuple(REGULARIZERS),
    "regularizer.schedule": tuple(SCHEDULES),
    "optim.schedule": ("constant", "linear", "cosine"),
    "evaluate.test": ("", "debian"),
}

_POSITIVE = (
    "batch_size",
    "log.every",
    "checkpoint.every",
    "checkpoint.keep",
    "data.window",
    "data.threads",
    "data.prefetch",
    "data.group_size",
    "data.query_length",
    "data.document_length",
    "loss.temperature",
)

_LAMBDAS = tuple(
    f"regularizer.{f}" for f in ("query", "document", "source_query", "source_document")
)
_SIZES = tuple(
    f"model.{f}"
    for f in (
        "family",
        "hidden_size",
        "num_layers",
        "num_heads",
        "intermediate_size",
        "max_length",
    )
)


def _check_stage(c, default, where) -> None:
    values = dict(_leaves(c))
    for field, choices in _CHOICES.items():
        if values[field] not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise InputError(f"{where}.{field} is {values[field]!r}; known: {known}.")
    for field in _POSITIVE:
        if values[field] <= 0:
            raise InputError(f"{where}.{field} is {values[field]}; it must be > 0.")
    if (c.steps > 0) == (c.epochs > 0):
        raise InputError(
            f"{where}: steps is {c.steps} and epochs is {c.epochs}; set one of them."
        )
    if c.optim.warmup_steps and c.optim.warmup_fraction:
        raise InputError(
            f"{where}.optim: warmup_steps is {c.optim.warmup_steps} and"
            f" warmup_fraction is {c.optim.warmup_fraction}; set one of them."
        )
    for field in ("query_languages", "document_languages"):
        language_weights(c.data[field], f"{where}.data.{field}")
    _check_needs(c, where)
    for applies, fields, because in _effects(c):
        if not applies:
            _no_effect(c, default, where, fields, because)


def _check_needs(c, where) -> None:
    loss = LOSSES[c.loss.name]
    needs = {
        "data.files": c.data.source == "files",
        "data.dataset": c.data.source == "datasets",
        "dev.files": c.dev.source == "files",
        "dev.dataset": c.dev.source == "datasets",
        "init.head": c.model.head == "milco" and not c.init.model,
        "teacher.model": loss.target == "views" or c.prepare.scores == "teacher",
    }
    values = dict(_leaves(c))
    for field, needed in needs.items():
        if needed and not values[field]:
            raise InputError(f"{where}.{field} is empty, but this config needs it.")
    if loss.target == "scores" and c.data.group_size < 2:
        raise InputError(
            f"{where}.data.group_size is {c.data.group_size}; the loss {c.loss.name}"
            " compares a query's documents, so it needs at least 2."
        )
    if c.prepare.negatives == "bm25" and c.prepare.count < c.data.group_size - 1:
        raise InputError(
            f"{where}.prepare.count is {c.prepare.count}: fewer negatives than the"
            f" {c.data.group_size - 1} that data.group_size asks for."
        )
    if c.init.model and (c.init.encoder or c.init.head):
        raise InputError(
            f"{where}.init: model gives the whole retriever; leave encoder and head"
            " empty."
        )


def _effects(c):
    """(the fields take effect, fields, why they do not)."""
    loss = LOSSES[c.loss.name]
    ranks = "document" in loss.texts
    columns = tuple(f"data.columns.{f}" for f in get_default().data.columns)
    return [
        (c.model.head == "milco", ("model.lexecho",), "model.head is not milco"),
        (
            c.model.lexecho,
            ("model.repeats", "model.exclude_special_tokens", "init.echo"),
            "model.lexecho is off",
        ),
        (c.init.echo == "idf", ("init.echo_scale",), "init.echo is random"),
        (c.model.head == "splade", ("init.lexical",), "model.head is not splade"),
        (c.model.head == "splade", ("model.tied",), "model.head is not splade"),
        (
            c.model.head == "milco",
            ("init.head", "init.from_pivot"),
            "model.head is not milco",
        ),
        (
            not c.init.model,
            ("init.from_pivot", "init.lexical"),
            "init.model gives all weights",
        ),
        (not c.init.encoder, ("init.from_pivot",), "init.encoder gives the weights"),
        (
            not (c.init.encoder or c.init.model),
            _SIZES,
            "init.encoder or init.model fixes the sizes",
        ),
        (c.data.source == "files", ("data.files",), "data.source is not files"),
        (
            c.data.source == "datasets",
            ("data.dataset", "data.subset"),
            "data.source is not datasets",
        ),
        (c.data.source != "files", ("data.split",), "files have no splits"),
        (c.data.source != "debian", columns, "the embedded data has its own names"),
        (
            c.data.source == "debian" and not ranks,
            ("data.fields",),
            "only embedded pairs have fields to choose",
        ),
        (
            ranks,
            (
                "data.group_size",
                "data.mixing",
                "data.query_languages",
                "data.document_languages",
                "prepare.negatives",
                "prepare.scores",
                *_LAMBDAS,
            ),
            f"the loss {c.loss.name} has no queries and documents",
        ),
        (
            c.model.lexecho,
            ("regularizer.source_query", "regularizer.source_document"),
            "model.lexecho is off",
        ),
        (
            any(c.regularizer[f.split(".")[1]] for f in _LAMBDAS),
            ("regularizer.name", "regularizer.schedule", "regularizer.warmup_steps"),
            "every lambda is 0",
        ),
        (
            c.regularizer.schedule != "constant",
            ("regularizer.warmup_steps",),
            "regularizer.schedule is constant",
        ),
        (
            "temperature" in loss.options,
            ("loss.temperature",),
            f"the loss {c.loss.name} has no temperature",
        ),
        (
            loss.target == "views" or c.prepare.scores == "teacher",
            ("teacher.model",),
            f"the loss {c.loss.name} asks no teacher (prepare.scores is given)",
        ),
        (
            loss.target == "scores",
            ("prepare.scores",),
            f"the loss {c.loss.name} reads no scores",
        ),
        (
            c.prepare.negatives == "bm25",
            ("prepare.count", "prepare.depth"),
            "prepare.negatives is given",
        ),
        (
            c.dev.source,
            ("dev.every", "dev.queries", "dev.metric", "dev.files", "dev.dataset"),
            "dev.source is empty",
        ),
        (c.evaluate.test, ("evaluate.examples",), "evaluate.test is empty"),
    ]


def _no_effect(c, default, where, fields, because) -> None:
    values, defaults = dict(_leaves(c)), dict(_leaves(default))
    for field in values:
        covered = any(field == f or field.startswith(f"{f}.") for f in fields)
        if covered and values[field] != defaults[field]:
            raise InputError(
                f"{where}.{field} = {values[field]!r} would have no effect: {because}."
                f" Remove it (the default is {defaults[field]!r})."
            )


def _check_references(c, earlier: list[str], where: str) -> None:
    for field in ("init.model", "init.encoder", "init.head", "teacher.model"):
        reference = dict(_leaves(c))[field]
        if reference.startswith("stage:") and reference[6:] not in earlier:
            known = ", ".join(earlier) or "none"
            raise InputError(
                f"{where}.{field} is {reference!r}, but the stages before this one"
                f" are: {known}."
            )


def language_weights(text: str, field: str) -> dict[str, float]:
    """Parses `"en:5,*:1"`.

    Args:
      text: language:weight, separated by commas.
      field: the config's field, for errors.

    Returns:
      Language to weight; `*` stands for every language not named.
    """
    weights = {}
    for part in text.split(","):
        language, _, weight = part.partition(":")
        try:
            weights[language.strip()] = float(weight)
        except ValueError:
            raise InputError(
                f"{field} is {text!r}: {part!r} is not language:weight."
                ' Write for example "en:5,*:1".'
            ) from None
    if min(weights.values()) < 0 or not any(weights.values()):
        raise InputError(f"{field} is {text!r}: weights are >= 0, one of them > 0.")
    return weights
