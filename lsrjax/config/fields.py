"""Every field of a run, once, and how fields are read."""

import ast
import math
import pathlib
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from lsrjax.config.other_names import not_a_field
from lsrjax.data.batching.mixing import blank_set
from lsrjax.errors import InputError

# The stage of a config that has none.
ONLY_STAGE = "train"


def get_default() -> ConfigDict:
    """One stage's config with every field at its default; unknown fields are errors."""
    c = ConfigDict(sort_keys=False)
    c.seed = 0  # of initial weights, data order, draws and dropout
    c.stages = ConfigDict(sort_keys=False)  # stages of a run by name, in order; each
    # a config like this one. A config without stages is itself the only stage.

    c.model = ConfigDict(sort_keys=False)
    c.model.head = "milco"  # splade | milco | token_weights (uniCOIL, sparse BGE-M3) |
    # dense | csr | colbert | m3 (dense, weights and embeddings of tokens)
    c.model.towers = "shared"  # shared (an encoder and head for all texts) | separate
    # (queries have their own, which start from the same weights; query_tower/… in
    # optim.freeze and no_decay)
    c.model.lexecho = False  # milco: add the source view
    c.model.repeats = "sum"  # lexecho: a token's repeats: sum (reference) | max
    c.model.exclude_special_tokens = False  # lexecho: leave <s>, </s>, … out
    c.model.pool_mask = "exclude"  # exclude | multiply (reference; padding matters)
    c.model.dtype = "float32"  # of matrix products: float32 | bfloat16
    c.model.tied = True  # splade: the decoder is the word embedding
    c.model.pooling = "max"  # over tokens; splade: max | sum; dense, csr: cls | mean
    c.model.queries = "encoded"  # splade: encoded | static (inference-free: a learned
    # weight for each distinct word) | words (SPLADE-doc: each weighs 1); neither is
    # encoded
    c.model.embedding_size = 0  # dense, csr, colbert; 0: that of the hidden states
    c.model.view_weights = (1.0, 0.3, 1.0)  # m3: of dense, terms, tokens in the score
    c.model.normalize = True  # dense, csr, colbert: embeddings have length 1
    c.model.latents = 4096  # csr: of the autoencoder
    c.model.active_latents = 64  # csr: of a text
    c.model.revived_latents = 512  # csr: dead ones that learn from a text
    c.model.dead_after = 30  # csr: steps in which no text activates a latent
    c.model.expand_queries = False  # colbert: fill queries up with the mask token
    c.model.skip_punctuation = False  # colbert: no embeddings of it in documents
    c.model.query_prompt = ""  # text before every query
    c.model.document_prompt = ""  # text before every document
    c.model.query_marker = ""  # token of the vocabulary behind a query's first one
    c.model.document_marker = ""  # the same in documents
    # Sizes, for random weights only (init.encoder is empty):
    c.model.family = "xlm-roberta"  # bert | xlm-roberta
    c.model.hidden_size = 128
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.model.intermediate_size = 512
    c.model.max_length = 512  # tokens; sets the size of the position table
    c.model.dropout = -1.0  # of hidden states and attention; -1: as what it starts
    # from was made (config.json), and 0 with random weights

    c.tokenizer = ""  # folder, hub id or embedded:{english,multilingual}; empty: the
    # one beside init.encoder or init.model

    # Where weights come from. A model is named by a Hugging Face folder or hub id, by
    # a stage's folder in a work directory, or as stage:NAME, a stage of this run.
    c.init = ConfigDict(sort_keys=False)
    c.init.model = ""  # a stage's whole retriever; parameters it lacks start fresh
    c.init.encoder = ""  # an encoder; empty: random weights of the sizes above
    c.init.head = ""  # milco: the masked LM or SPLADE whose head is copied
    c.init.static = "ones"  # static queries: ones | idf (of the training documents)
    c.init.lexical = False  # splade: start as a weighted bag of the text's own words
    c.init.from_pivot = ""  # milco: start the encoder from init.head's layers and its
    # embeddings: shared (of tokens in both vocabularies) | translations (of the words
    # that each token translates to in the training pairs; then those shared)
    c.init.echo = "random"  # lexecho: random (reference) | idf, fitted to the tokens'
    # inverse document frequency
    c.init.echo_scale = 0.5  # idf: a token starts at echo_scale * sqrt(its idf)

    c.teacher = ConfigDict(sort_keys=False)
    c.teacher.model = ""  # the frozen English model: of views (alignment) or of scores
    # (then also a cross-encoder: a BERT or XLM-R sequence classifier with one label)

    c.data = ConfigDict(sort_keys=False)
    c.data.source = "files"  # files | datasets | tfds | debian (embedded)
    c.data.files = ""  # files: paths, folders or globs with commas between, of Parquet,
    # JSONL (maybe packed: .gz, .zst, .bz2), CSV or TSV; or a BEIR folder
    c.data.dataset = ""  # datasets: folders of save_to_disk, clones of hub data sets or
    # hub ids, with commas between, each with its subsets: "a/b, c/d:en-de+en-fr"; tfds:
    # a data set's name/config or folder
    c.data.split = "train"  # datasets, tfds, debian; format beir: of the judgements
    c.data.format = "auto"  # by the columns, or a name in data/reading/formats.py
    c.data.corpus = ""  # of ids, and to mine from: files of documents (.jsonl, .tsv,
    # .csv, .parquet), maybe in several languages: "en:docs.en.tsv,de:docs.de.tsv"; or
    # data sets of `datasets`: "datasets:FOLDER", "en:datasets:me/docs:SUBSET:SPLIT"
    # (both may be left out)
    c.data.queries = ""  # format colbert: the same, of queries
    c.data.min_label = 0.5  # format labelled: rows below this label are left out
    c.data.fields = ("title", "text")  # debian pairs: which wordings to align
    c.data.columns = ConfigDict(sort_keys=False)  # what the file calls each field
    c.data.columns.english = "english"
    c.data.columns.translation = "non_english"
    c.data.columns.language = "language"
    c.data.columns.query = "query"
    c.data.columns.pos = "pos"
    c.data.columns.neg = "neg"
    c.data.columns.pos_scores = "pos_scores"  # several teachers: "a_pos,b_pos"
    c.data.columns.neg_scores = "neg_scores"  # … in the same order: "a_neg,b_neg"
    c.data.score_weights = ""  # of several teachers: "2,1"; empty: all the same
    c.data.score_normalization = "none"  # of a teacher's scores of a query's documents:
    # none | zscore | minmax
    # Several data sets instead: name -> data_set(source=…, files=…, weight=…), which
    # has its own source, files, columns and all else above.
    c.data.sets = ConfigDict(sort_keys=False)
    c.data.mixer = "proportional"  # sets: round_robin | proportional (to their
    # examples) | temperature | weights (as each set says)
    c.data.mix_temperature = 2.0  # temperature: examples^(1 / it); 1: proportional
    c.data.batches_from = "mixed"  # sets: mixed | one (a batch is of one set)
    c.data.topics = 0  # clusters of queries, at most; a batch is of one (TAS-B); 0: off
    c.data.unique_texts = False  # no query or positive text twice in a batch, which
    # in-batch negatives would take for a negative
    c.data.query_length = 64  # tokens
    c.data.document_length = 256  # tokens; for pairs: of either text
    # A device's texts (of each role, where they are encoded apart)
    c.data.length_parts = 10  # are cut into up to so many by length,
    c.data.length_multiple = 4  # each padded to its own multiple of so many tokens
    c.data.group_size = 1  # documents of a query: positives and hard negatives
    c.data.positives = 1  # of them
    c.data.negatives = "random"  # which of a row's: random | top (its first ones) |
    # rank (random, its first ones more likely) | margin_bins (TAS-B: random over the
    # margins between the teacher's scores of positive and negative)
    c.data.negative_rank_scale = 10.0  # rank: e times less likely after so many ranks
    c.data.margin_bins = 10  # margin_bins: their number, of equal width
    # Negatives that the teacher takes for positives are left out:
    c.data.negative_max_score = math.inf  # highest score of a negative; inf: any
    c.data.negative_margin = -math.inf  # by how much it is below the positive's, at
    # least; -inf: any
    c.data.short_rows = "bad"  # of rows with fewer negatives than group_size needs: bad
    # (they are bad records, see below) | repeat (drawn with replacement)
    c.data.mixing = "passages"  # debian, corpus: a language is drawn for each document:
    # passages | for all documents of a query: entries | every query comes in all of
    # document_languages: round_robin
    c.data.query_languages = "*:1"  # language:weight,…; * = any other language
    c.data.document_languages = "*:1"  # debian, corpus: the same, for documents
    c.data.bad_records = 0.001  # share of a data set's records, and of texts by id,
    # that may be bad: others take their places, bad_records.jsonl names them; 0: none
    c.data.threads = 2  # that read and tokenize
    c.data.prefetch = 16  # batches held ready

    c.prepare = ConfigDict(sort_keys=False)
    c.prepare.negatives = "given"  # given (by the data) | bm25 (mined from data.corpus,
    # or from the documents of all rows without one)
    c.prepare.scores = "given"  # given | teacher (teacher.model scores every document)
    c.prepare.count = 7  # bm25: negatives kept for a query
    c.prepare.depth = 50  # bm25: drawn from this many best documents

    c.loss = ConfigDict(sort_keys=False)
    # alignment | kl | margin_mse | infonce | reconstruction (csr) | m3, or a weighted
    # sum of losses of the same texts: "kl:1,margin_mse:0.05"; added to another one,
    # language_kl (mixing round_robin: between a query's scores in two languages)
    c.loss.name = "kl"
    c.loss.temperature = 1.0  # kl, language_kl: of both softmaxes
    c.loss.view_weights = (1.0, 0.1, 1.0)  # m3: of the losses of dense, terms, tokens
    c.loss.auxiliary = 0.1  # reconstruction: weight of what dead latents miss
    c.loss.teacher_scale = 1.0  # kl, margin_mse: multiplies the teacher's scores
    c.loss.margins = "positive"  # margin_mse: of each negative to the positive:
    # positive | of all pairs of a query's documents: all
    c.loss.infonce_temperature = 1.0  # infonce: scores are divided by it
    c.loss.both_directions = False  # infonce: also a document's query among all queries
    c.loss.mask_same_text = True  # infonce: no negatives are: documents equal to the
    # positive in any language, and those of other examples of the same query
    c.loss.false_negative_margin = 0.0  # infonce: nor are hard negatives that the
    # teacher scores above the positive less this margin; 0: off

    c.regularizer = ConfigDict(sort_keys=False)
    c.regularizer.name = "l1"  # l1 | flops | masked_flops | idf_flops | joint_flops (of
    # queries and documents together; its lambdas are the documents')
    c.regularizer.threshold = 0  # masked_flops: leaves texts of so many terms alone
    c.regularizer.query = 0.0  # lambda of queries, vocabulary view
    c.regularizer.document = 0.0  # lambda of documents, vocabulary view
    c.regularizer.source_query = 0.0  # lambda of queries, source view
    c.regularizer.source_document = 0.0  # lambda of documents, source view
    c.regularizer.schedule = "constant"  # constant | linear | quadratic
    c.regularizer.warmup_steps = 0  # linear, quadratic: steps up to the full lambda
    # Steers a lambda of the vocabulary view, from its value above, until a text has so
    # many active terms on average; 0: off.
    c.regularizer.active_query = 0.0
    c.regularizer.active_document = 0.0
    c.regularizer.active_gain = 0.01  # by at most this power of e a step; lower it
    # where the number of terms swings
    c.regularizer.anti_zero = 0.0  # weight of what keeps vocabulary views from dying

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

    # How the work is cut; no result depends on it.
    c.mesh = ConfigDict(sort_keys=False)
    c.mesh.data = -1  # devices that texts are divided over; -1: the rest
    # Devices that heads, inner widths and vocabularies are divided over:
    c.mesh.model = 1
    c.mesh.fsdp = False  # divide parameters and optimizer state over data, too
    c.memory = ConfigDict(sort_keys=False)
    # Texts that a device encodes at a time, encoding them again in the backward pass;
    # 0: all at once.
    c.memory.encode_chunk = 0
    c.memory.remat = "none"  # what a layer's backward pass computes again: none | dots
    # (all but products with parameters) | layer (all); not none: the layers run as a
    # loop, which compiles sooner and costs a copy of their parameters

    c.batch_size = 64  # examples (queries or pairs) in the global batch; round_robin:
    # a query counts once for each language
    c.steps = 0  # optimizer steps; or give epochs
    c.epochs = 0.0

    # Retrieval on held-out examples: over the whole corpus where they hold ids (format
    # beir and others), else over their own documents.
    c.dev = ConfigDict(sort_keys=False)
    c.dev.source = ""  # as data.source; empty: no evaluation during training
    c.dev.files = ""
    c.dev.dataset = ""
    c.dev.split = "dev"
    c.dev.format = "auto"  # as data.format
    c.dev.every = 0  # steps; 0: at the end only
    c.dev.queries = 300  # at most
    c.dev.metric = "nDCG@10"  # any name ir_measures knows; picks the best checkpoint

    c.checkpoint = ConfigDict(sort_keys=False)
    c.checkpoint.every = 500  # steps
    c.checkpoint.keep = 2  # last checkpoints, besides the best
    # A checkpoint that would not fit: stop, or go_on without it (all but the last).
    c.checkpoint.on_full_disk = "stop"

    c.numbers = ConfigDict(sort_keys=False)
    # A loss or gradient that is not finite, or a loss that jumps: stop | skip (the
    # step changes nothing) | roll_back (to the last checkpoint; from there on without
    # the batch, which the stage's left_out.json names)
    c.numbers.policy = "stop"
    c.numbers.most = 10  # skip: steps in a row; roll_back: batches in all; then stop
    # A loss jumps if it is above so many times the median of the 32 steps before; 0:
    # never
    c.numbers.spike = 0.0
    c.watchdog = ConfigDict(sort_keys=False)
    # A step, or a batch of an evaluation, that takes longer ends all processes; not
    # so while the step is compiled. 0: off
    c.watchdog.seconds = 1800.0

    c.log = ConfigDict(sort_keys=False)
    c.log.every = 10  # steps
    # Also: terms that no text of a batch uses; the share of the weights that lies on
    # terms which are not in the text; active terms by language.
    c.log.health = False

    c.evaluate = ConfigDict(sort_keys=False)  # of a finished run
    c.evaluate.test = ""  # debian: the table over systems and languages; empty: none
    c.evaluate.examples = ()  # languages of which to show a query with its terms
    return c.lock()


def data_set(**fields) -> ConfigDict:
    """One of `data.sets`, with the defaults of `data` but for these fields.

        sets = {"papers": data_set(files="papers/*.parquet", weight=2.0)}
        c.data.sets = ConfigDict(sets, sort_keys=False)

    Args:
      **fields: source, files, dataset, split, fields, columns (those that differ) and
        weight (mixer weights).

    Raises:
      InputError: a field that there is not.
    """
    made = blank_set(get_default().data)
    for field, value in fields.items():
        if field not in made:
            raise InputError(not_a_field(field, made, "data_set()"))
        made.update({field: value})
    return made.lock()


def stages(config: ConfigDict) -> dict[str, ConfigDict]:
    """The stages of a run in order; a config without stages is the stage `train`."""
    if len(config.stages):
        return {name: config.stages[name] for name in config.stages}
    return {ONLY_STAGE: config}


def fields(config: Mapping, prefix: str = "") -> Iterator[str]:
    """The names of all fields, `optim.lr` or `stages.align.optim.lr`."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def set_field(config: ConfigDict, field: str, text: str | None, flag: str) -> None:
    """Sets a field to what stands on a command line.

    Args:
      config: of a run.
      field: such as "optim.lr" or "stages.align.optim.lr".
      text: the value, as the field's type writes it in Python; strings without quotes.
        None: true.
      flag: such as "--config", for errors.

    Raises:
      InputError: there is no such field, or the value is of another type.
    """
    known = list(fields(config))
    *groups, last = field.split(".")
    node = config
    for group in groups:
        node = node.get(group) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or last not in node:
        raise InputError(not_a_field(field, known, flag))
    default = node[last]
    if isinstance(default, ConfigDict):
        raise InputError(
            f"{flag}.{field} is a group of fields; set one of them, such as"
            f" {flag}.{field}.{next(iter(default), 'NAME')}."
        )
    node[last] = _value(default, "true" if text is None else text, f"{flag}.{field}")


def _value(default, text: str, field: str):
    """A text as a value of the same type as a field's default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int | float):
            return type(default)(text)
        if isinstance(default, tuple):
            found = ast.literal_eval(text)
            return tuple(found) if isinstance(found, tuple | list) else (found,)
    except (ValueError, KeyError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(
            f"{field} is {text!r}, which is no {type(default).__name__}; an example is"
            f" {default!r}."
        ) from error
    return text


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
        language = language.strip()
        try:
            if not language:
                raise ValueError
            value = float(weight)
        except ValueError:
            raise InputError(
                f"{field} is {text!r}: {part!r} is not language:weight."
                ' Write for example "en:5,*:1".'
            ) from None
        if language in weights:
            raise InputError(f"{field} is {text!r}: {language} has two weights.")
        weights[language] = value
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(
        weights.values()
    ):
        raise InputError(f"{field} is {text!r}: weights are >= 0, one of them > 0.")
    return weights


def load(path: pathlib.Path, arguments: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file.

    Raises:
      InputError: it is missing, fails, or gives no config.
    """
    if not path.is_file():
        raise InputError(f"No config file {path} (from {pathlib.Path.cwd()}).")
    try:
        names = runpy.run_path(str(path))
        if "get_config" not in names:
            raise InputError(f"{path} has no function get_config().")
        found = names["get_config"](*arguments)
    except InputError:
        raise
    except Exception as error:
        lines = [
            line
            for line in traceback.extract_tb(error.__traceback__)
            if line.filename == str(path)
        ]
        text = traceback.format_list(lines) + traceback.format_exception_only(error)
        raise InputError(
            f"{path} could not be run:\n{''.join(text).rstrip()}"
        ) from error
    if not isinstance(found, ConfigDict):
        raise InputError(
            f"get_config() of {path} returns {type(found).__name__}, not a ConfigDict."
        )
    return found
