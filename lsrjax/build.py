"""What a stage starts from: its retriever's spec, tokenizers and initial weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import sparse

from lsrjax import checkpoint, term_statistics
from lsrjax.checkpoint import SavedModel
from lsrjax.convert import huggingface, milco_hf, sentence_in
from lsrjax.convert.modules import UnknownModuleError
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever, start
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.models.encoder import Encoder, EncoderConfig
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.prepare.translations import translation_table
from lsrjax.term_statistics import LENGTH
from lsrjax.trees import path_name

_IDF_TEXTS = 4096  # sampled to fit LexEcho


@dataclasses.dataclass(frozen=True)
class Student:
    """A retriever before training.

    Attributes:
      spec: what it is.
      tokenizer: folder of the encoder's tokenizer, None in a plan without one.
      pivot_tokenizer: MILCO: folder of the English one.
      params: makes the initial weights; is given the training source, to take term
        statistics and translations from.
    """

    spec: RetrieverSpec
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    params: Callable[[Sequence], dict]


def open_model(
    reference: str,
    workdir: pathlib.Path,
    *,
    cross_encoder: bool = False,
    allowed: huggingface.Allowed = huggingface.NOTHING,
) -> SavedModel:
    """The model that a config's reference names.

    Args:
      reference: `stage:NAME`, a stage's folder, or a Hugging Face folder or hub id of
        a MILCO (ours or the reference's), a masked LM, an encoder alone (then without
        a head), or a model of sentence-transformers or ColBERT.
      workdir: of the run, for `stage:`.
      cross_encoder: one may be named, too; its spec is a `CrossEncoderSpec` then.
      allowed: what is put up with in a Hugging Face model.
    """
    if reference.startswith("stage:"):
        return checkpoint.load_model(workdir / reference.removeprefix("stage:"))
    if checkpoint.holds_stages(reference):
        return checkpoint.load_model(reference)
    if milco_hf.is_milco(reference):
        *parts, lengths, unused = milco_hf.read(reference, allowed)
        return SavedModel(*parts, reference, lengths, unused)
    refused = None
    try:
        if (other := sentence_in.read(reference)) is not None:
            params = dict(other.params)
            return SavedModel(other.spec, params, other.tokenizer, None, other.name)
    except UnknownModuleError as error:
        refused = error
    found = huggingface.load_checkpoint(reference, allowed)
    folder = tokenizer_folder(reference)
    if "classifier" in found.params:
        if not cross_encoder:
            raise InputError(
                f"{reference} is a cross-encoder, which scores pairs of texts and"
                " represents none. It can be a teacher of scores: config.teacher.model"
                " with config.prepare.scores = 'teacher'."
            )
        check_vocabulary(folder, found.config.vocab_size, reference)
        spec = CrossEncoderSpec(found.config)
        return SavedModel(spec, found.params, folder, None, reference)
    head = found.params.get("head")
    if refused and head is not None:
        raise refused
    # Of other models of sentence-transformers, the encoder alone can be started from.
    spec = RetrieverSpec(
        head="splade",
        encoder=found.config,
        tied=head is not None and "decoder" not in head["mlm"],
    )
    return SavedModel(spec, found.params, folder, None, reference)


def tokenizer_folder(reference: str) -> pathlib.Path:
    """The folder that holds the `tokenizer.json` of a folder, hub id or `embedded:`."""
    if reference.startswith("embedded:"):
        from lsrjax.data import embedded

        known = {
            "english": embedded.ENGLISH_TOKENIZER,
            "multilingual": embedded.MULTILINGUAL_TOKENIZER,
        }
        name = reference.removeprefix("embedded:")
        if name not in known:
            raise InputError(
                f"config.tokenizer is {reference!r}; the embedded ones are"
                f" {', '.join(f'embedded:{k}' for k in known)}."
            )
        return pathlib.Path(known[name])
    return huggingface.tokenizer_folder(reference)


def student(config, opened: Callable[[str], SavedModel]) -> Student:
    """The retriever that a stage's config describes.

    Args:
      config: the stage's.
      opened: gives the model of a reference, as `open_model` does. To plan, the
        parameters may be abstract and the tokenizers missing.

    Raises:
      InputError: parts that do not fit each other, named with their sizes.
    """
    if config.init.model:
        made = _from_stage(config, opened(config.init.model))
    elif config.model.head == "splade":
        made = _splade(config, opened)
    elif config.model.head == "milco":
        made = _milco(config, opened)
    else:
        made = _on_an_encoder(config, opened)
    return made if config.model.towers == "shared" else _with_towers(made)


def _with_towers(made: Student) -> Student:
    """A student whose towers are separate; they start as the one that there is."""
    if not made.spec.encodes_queries:
        raise InputError(
            "config.model.towers is 'separate', but queries of the head"
            f" {made.spec.head} need no encoder, so there is nothing to separate. Use"
            " 'shared'."
        )

    def params(source):
        values = made.params(source)
        document, query = retriever.towers_of(values)
        return values if query else retriever.with_query_tower(document)

    spec = dataclasses.replace(made.spec, towers="separate")
    return dataclasses.replace(made, spec=spec, params=params)


def _one_tower(model: SavedModel, field: str) -> SavedModel:
    """The model, which has to have a single encoder and head."""
    if model.spec.towers == "separate":
        raise InputError(
            f"config.{field}: {model.name} has separate towers for queries and"
            " documents, and it is not said which one is meant. Start from all of it"
            " with config.init.model and config.model.towers = 'separate', or name a"
            " model with shared towers."
        )
    return model


def _encoder(config, opened) -> tuple[EncoderConfig, dict | None, pathlib.Path, str]:
    """Config, weights (None: random), tokenizer folder and where they came from."""
    if config.init.encoder:
        model = _one_tower(opened(config.init.encoder), "init.encoder")
        folder = (
            tokenizer_folder(config.tokenizer) if config.tokenizer else model.tokenizer
        )
        encoder = dataclasses.replace(
            model.spec.encoder,
            hidden_dropout=config.model.dropout,
            attention_dropout=config.model.dropout,
        )
        check_vocabulary(folder, encoder.vocab_size, config.init.encoder)
        return encoder, model.params, folder, config.init.encoder
    if not config.tokenizer:
        raise InputError(
            "config.tokenizer is empty and so is config.init.encoder: random weights"
            " need a tokenizer, which fixes the vocabulary."
        )
    folder = tokenizer_folder(config.tokenizer)
    tokenizer = TextTokenizer(folder)
    m = config.model
    offset = tokenizer.pad_id + 1 if m.family == "xlm-roberta" else 0
    encoder = EncoderConfig(
        family=m.family,
        vocab_size=tokenizer.vocab_size,
        hidden_size=m.hidden_size,
        num_layers=m.num_layers,
        num_heads=m.num_heads,
        intermediate_size=m.intermediate_size,
        max_positions=m.max_length + offset,
        type_vocab_size=2 if m.family == "bert" else 1,
        pad_token_id=tokenizer.pad_id,
        layer_norm_eps=1e-12 if m.family == "bert" else 1e-5,
        hidden_dropout=m.dropout,
        attention_dropout=m.dropout,
    )
    return encoder, None, folder, "random weights"


def check_vocabulary(folder, vocab_size: int, name: str) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings.

    Raises:
      InputError: it has.
    """
    if folder is None:
        return
    size = TextTokenizer(folder).vocab_size
    if size > vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has {size} tokens, but the model {name} has"
            f" embeddings for {vocab_size}. Use the tokenizer that the model"
            " was trained with (config.tokenizer)."
        )


def _head_options(config, folder) -> dict:
    return {
        "pool_mask": config.model.pool_mask,
        "lexecho": config.model.lexecho,
        "repeats": config.model.repeats,
        "exclude_special_tokens": config.model.exclude_special_tokens,
        "pooling": config.model.pooling,
        "queries": config.model.queries,
        "embedding_size": config.model.embedding_size,
        "normalize": config.model.normalize,
        "view_weights": tuple(config.model.view_weights),
        "latents": config.model.latents,
        "active_latents": config.model.active_latents,
        "revived_latents": config.model.revived_latents,
        "dead_after": config.model.dead_after,
        "query_prompt": config.model.query_prompt,
        "document_prompt": config.model.document_prompt,
        **(_token_options(config.model, TextTokenizer(folder)) if folder else {}),
    }


def _token_options(model, tokenizer: TextTokenizer) -> dict:
    """What a config says of tokens, as their ids."""
    expanded = model.expand_queries
    return {
        "special_ids": tokenizer.special_ids,
        "query_marker": _token_id(tokenizer, model.query_marker, "query_marker"),
        "document_marker": _token_id(
            tokenizer, model.document_marker, "document_marker"
        ),
        "expand_id": tokenizer.mask_id if expanded else -1,
        "skip_ids": tokenizer.punctuation_ids if model.skip_punctuation else (),
    }


def _token_id(tokenizer: TextTokenizer, token: str, field: str) -> int:
    """The id of a token; -1 for none."""
    found = tokenizer.vocabulary().get(token, -1)
    if token and found < 0:
        raise InputError(
            f"config.model.{field} is {token!r}, which is not in the vocabulary of"
            f" {tokenizer.folder}. Name a token that it has, such as [unused0] of BERT."
        )
    return found


def _on_an_encoder(config, opened) -> Student:
    """A retriever whose head starts fresh on an encoder."""
    encoder, weights, folder, name = _encoder(config, opened)
    spec = RetrieverSpec(
        head=config.model.head, encoder=encoder, **_head_options(config, folder)
    )

    def params(source):
        values = retriever.init_params(spec, config.seed)
        if weights is not None:
            values = _overlaid(values, {"encoder": weights["encoder"]}, name)
        return values

    return Student(spec, folder, None, params)


def _splade(config, opened) -> Student:
    encoder, weights, folder, name = _encoder(config, opened)
    if weights is not None and "head" not in weights:
        raise InputError(
            f"config.init.encoder: {name} has no masked-LM head, which a SPLADE starts"
            " from. Use a masked language model."
        )
    tied = config.model.tied
    if weights is not None:
        tied = "decoder" not in weights["head"]["mlm"]
    spec = RetrieverSpec(
        head="splade", encoder=encoder, tied=tied, **_head_options(config, folder)
    )

    def params(source):
        values = retriever.init_params(spec, config.seed)
        if weights is not None:
            values = _overlaid(values, weights, name)
        if config.init.lexical or config.init.static == "idf":
            texts = term_statistics.texts_by_language(source)
            idf = term_statistics.least_idf(
                TextTokenizer(folder), texts, encoder.vocab_size
            )
            if config.init.lexical:
                values = start.lexical(values, idf, config.seed)
            if config.init.static == "idf":
                idf = idf.astype(np.float32)
                idf[list(spec.special_ids)] = 0
                values = _merge(values, {"head": {"static": idf}})
        return values

    return Student(spec, folder, None, params)


def _milco(config, opened) -> Student:
    encoder, weights, folder, name = _encoder(config, opened)
    pivot = _one_tower(opened(config.init.head), "init.head")
    if "head" not in pivot.params:
        raise InputError(
            f"config.init.head: {config.init.head} has no masked-LM head to copy."
        )
    spec = RetrieverSpec(
        head="milco",
        encoder=encoder,
        pivot_vocab_size=pivot.spec.encoder.vocab_size,
        pivot_hidden_size=pivot.spec.encoder.hidden_size,
        pivot_layer_norm_eps=pivot.spec.encoder.layer_norm_eps,
        **_head_options(config, folder),
    )

    def params(source):
        values = retriever.init_params(spec, config.seed)
        values = _overlaid(values, {"head": {"mlm": _untied(pivot)}}, pivot.name)
        if weights is not None:
            values = _overlaid(values, {"encoder": weights["encoder"]}, name)
        if config.init.from_pivot:
            values = _from_pivot(config, values, spec, folder, pivot, source)
        return _with_echo(config, values, spec, folder, source)

    return Student(spec, folder, pivot.tokenizer, params)


def _from_stage(config, model: SavedModel) -> Student:
    if config.model.head != model.spec.head:
        raise InputError(
            f"config.init.model: {model.name} has the head {model.spec.head!r}, but"
            f" config.model.head is {config.model.head!r}."
        )
    if config.model.towers == "shared":
        _one_tower(model, "init.model")
    learned_echo = "echo" in model.params.get("head", {})
    if learned_echo and config.init.echo != "random":
        raise InputError(
            f"config.init.echo = {config.init.echo!r} would have no effect:"
            f" {model.name} has a source view that was trained. Remove it."
        )
    folder = tokenizer_folder(config.tokenizer) if config.tokenizer else model.tokenizer
    check_vocabulary(folder, model.spec.encoder.vocab_size, model.name)
    encoder = dataclasses.replace(
        model.spec.encoder,
        hidden_dropout=config.model.dropout,
        attention_dropout=config.model.dropout,
    )
    spec = dataclasses.replace(
        model.spec, encoder=encoder, towers="shared", **_head_options(config, folder)
    )

    def tower(weights, source):
        values = retriever.init_params(spec, config.seed)
        values = _overlaid(values, weights, model.name)
        if learned_echo:
            return values
        return _with_echo(config, values, spec, folder, source)

    def params(source):
        document, query = retriever.towers_of(model.params)
        values = tower(document, source)
        if query is None:
            return values
        return retriever.with_query_tower(values, tower(query, source))

    return Student(spec, folder, model.pivot_tokenizer, params)


def _untied(pivot: SavedModel) -> dict:
    """The English head with a decoder of its own."""
    mlm = dict(pivot.params["head"]["mlm"])
    mlm.setdefault(
        "decoder", pivot.params["encoder"]["embeddings"]["word"]["embedding"]
    )
    return mlm


def _overlaid(params: dict, weights: dict, name: str) -> dict:
    """`params` with every weight of `weights`, which must exist there and fit."""
    shapes = {
        path_name(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    wrong = [
        f"  {path_name(path)}: {name} {leaf.shape},"
        f" config {shapes.get(path_name(path), 'has none')}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
        if shapes.get(path_name(path)) != leaf.shape
    ]
    if wrong:
        raise InputError(
            f"The weights of {name} do not fit the model of the config:\n"
            + "\n".join(wrong[:20])
        )
    return _merge(params, weights)


def _merge(params, weights):
    if not isinstance(weights, dict):
        return jnp.asarray(weights)
    return params | {key: _merge(params[key], weights[key]) for key in weights}


def _from_pivot(config, values, spec: RetrieverSpec, folder, pivot, source) -> dict:
    ours, theirs = spec.encoder, pivot.spec.encoder
    for field in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
        a, b = getattr(ours, field), getattr(theirs, field)
        if a != b:
            raise InputError(
                f"config.init.from_pivot: the student's {field} is {a}, that of"
                f" {pivot.name} is {b}; starting from its layers needs them equal."
            )
    tokenizer, english = TextTokenizer(folder), TextTokenizer(pivot.tokenizer)
    shape = (ours.vocab_size, theirs.vocab_size)
    words = start.shared_tokens(tokenizer.vocabulary(), english.vocabulary(), shape)
    if not words.nnz:
        raise InputError(
            f"config.init.from_pivot: no token of {folder} equals one of"
            f" {pivot.tokenizer}. It is made for SentencePiece vocabularies (▁word)"
            " beside an English WordPiece one; leave it empty."
        )
    if config.init.from_pivot == "translations":
        table = _translations(tokenizer, english, source, shape)
        unseen = np.diff(table.indptr) == 0
        words = table + sparse.diags_array(unseen.astype(float)) @ words
    return start.from_pivot(
        values, ours, pivot.params["encoder"], theirs, words.tocsr()
    )


def _translations(tokenizer, english, source, shape) -> sparse.csr_matrix:
    """P(English token | token) from the source's pairs, and from its English texts.

    Shortest pairs come first: few words leave little doubt which translates which.
    """
    pairs = [
        (pair.translation, pair.english)
        for pair in (source[i] for i in range(len(source)))
    ]
    pairs += [(text, text) for text in sorted({text for _, text in pairs})]
    left = tokenizer.ids([a for a, _ in pairs], LENGTH, special=False)
    right = english.ids([b for _, b in pairs], LENGTH, special=False)
    order = sorted(range(len(pairs)), key=lambda i: len(left[i]) * len(right[i]))
    return translation_table(
        [left[i] for i in order], [right[i] for i in order], *shape
    )


def _sample(texts: dict[str, list[str]], count: int) -> dict[str, list[str]]:
    """About `count` texts, spread evenly over the languages and over each one."""
    share = max(count // max(len(texts), 1), 1)
    return {
        language: [
            t[i] for i in np.linspace(0, len(t) - 1, min(share, len(t)), dtype=int)
        ]
        for language, t in texts.items()
    }


def _with_echo(config, values, spec: RetrieverSpec, folder, source) -> dict:
    if not spec.lexecho or config.init.echo != "idf":
        return values
    texts = term_statistics.texts_by_language(source)
    tokenizer = TextTokenizer(folder)
    length = min(LENGTH, spec.encoder.max_length)
    idf_V = term_statistics.least_idf(tokenizer, texts, spec.encoder.vocab_size)
    values = start.with_idf_direction(values, idf_V)
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: Encoder(spec.encoder, rngs=nnx.Rngs(0))), nnx.Param
    )
    encode = jax.jit(
        lambda params, text: nnx.merge(graphdef, params)(text["ids"], text["mask"])
    )
    hidden, idf = [], []
    for batch in _batches(_sample(texts, _IDF_TEXTS).values(), 64):
        text = tokenizer.batch(batch, length, ())
        mask = text["mask"].astype(bool)
        hidden.append(np.asarray(encode(values["encoder"], text))[mask])
        idf.append(idf_V[text["ids"][mask]])
    return start.echo_from_idf(
        values,
        np.concatenate(hidden),
        np.concatenate(idf),
        scale=config.init.echo_scale,
    )


def _batches(texts: Iterable[list[str]], size: int) -> Iterable[list[str]]:
    """All in batches of one size, less what is left over; few texts are one batch."""
    flat = [text for some in texts for text in some]
    for first in range(0, max(len(flat) - size, 0) + 1, size):
        yield flat[first : first + size]
