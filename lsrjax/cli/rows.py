"""The flags of commands that read training rows: `--data.FIELD`, as in a config."""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lsrjax import paths
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import entry_flags, parsing
from lsrjax.config import check_data, fields, schema
from lsrjax.convert import open_model, reranker
from lsrjax.data import sources
from lsrjax.data.reading import unchanged_files
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import CrossEncoderSpec, Question, bad_prompt
from lsrjax.options import checked
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.rank import Searcher

# Of models that were not trained here.
_QUERY, _DOCUMENT = 64, 256


class Parser(parsing.Parser):
    """Takes `--data.FIELD=VALUE` beside its own flags."""

    def __init__(self, command: str, description: str | None):
        super().__init__(
            prog=f"lsrjax {command}",
            description=description,
            epilog="--data.FIELD=VALUE reads the rows as config.data.FIELD does:"
            " source.files, format, corpus, format.queries, … (docs/config.md).",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parsed(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Any]:
        """The flags, and a config with the fields of `data`.

        Raises:
          InputError: an unknown flag, or a field with a wrong value.
        """
        given = sys.argv[1:] if argv is None else argv
        set_fields, rest = entry_flags.split(given, r"--data\..+")
        args = self.parse_args(rest)
        config = fields.get_default()
        for flag, text in set_fields:
            fields.set_field(config, flag.removeprefix("--"), text, "--config")
        checked(schema.Data, config.data, "--data")
        return args, config


def named(read: Callable[[], Any]) -> Any:
    """What `read` returns; its errors name flags, not fields of a config."""
    try:
        return read()
    except BadRecord:
        raise
    except InputError as error:
        text = re.sub(r"(?:--)?config\.data\.", "--data.", str(error))
        raise InputError(text) from error


def open_rows(config: ConfigDict, *, mined: bool = False):
    """The queries with documents that the flags name.

    Args:
      mined: negatives are mined from `--data.corpus`, which any format may have.

    Raises:
      InputError: rows that are missing or of no known format, or a broken text.
    """
    if len(config.data.sets):
        raise InputError("--data.sets: name the rows of one set, in --data.source.")
    for field in (chosen := sources.chosen(config.data.source)).entry.needs:
        if not getattr(chosen.options, field, True):
            raise InputError(
                f"Name the training rows, as in --data.source.{field}=…, for the source"
                f" {chosen.name}."
            )
    # Texts are compared and scored in English, or in a language that is not stated.
    prepare = schema.Prepare(negatives="bm25" if mined else "given", scores="teacher")
    named(lambda: check_data.check_english(config.data, prepare, "config.data"))
    source = named(lambda: sources.open_source(config.data, "group", mined=mined))
    for error in getattr(source, "bad_texts", ()):
        raise error
    return source


def are_named(config: ConfigDict) -> bool:
    """Whether flags set fields of `--data`."""
    return bool(_set(config))


def state_of(config: ConfigDict, source) -> dict[str, Any]:
    """What the rows depend on: fields that are set, digests of files, versions."""
    states = named(lambda: unchanged_files.states(config.data, config.dev))
    # Their places may change, their contents may not.
    return {
        "data": _set(config),
        "files": {name: of["digest"] for name, of in states.items()},
        "versions": dict(getattr(source, "versions", {})),
    }


def _set(config: ConfigDict) -> dict[str, Any]:
    """The fields of `data` that are not those of a new config."""
    given, blank = (
        json.loads(one.to_json())["data"] for one in (config, fields.get_default())
    )
    return _changed(given, blank)


def _changed(values: Mapping, blank: Mapping) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = _changed(value, blank.get(name, {}))
            found |= {f"{name}.{k}": v for k, v in inner.items()}
        elif value != blank.get(name):
            found[name] = value
    return found


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Flags about how models read texts."""

    query: int
    document: int
    batch_size: int
    dtype: str
    question: Question = Question()


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `Lengths`, and `--workdir` for stages."""
    doc = "a decoder's question about a pair, with {query} and {document}"
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, help="the run's folder, for stage:NAME")
    add("--query_length", type=int, default=0, help="tokens; 0: as trained, or 64")
    add("--document_length", type=int, default=0, help="tokens; 0: as trained, or 256")
    add("--batch_size", type=int, default=64, help="texts or pairs at once (64)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--prompt", default="", help=f"{doc}; the score is its answer's logit")
    add("--yes", default="", help="the answer, a single token (yes)")
    add("--no", help="subtract this one's logit (no); empty: none")


def lengths_of(args: argparse.Namespace) -> Lengths:
    """The flags; InputError for a number below its range."""
    for name, least in (("query_length", 0), ("document_length", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}; at least {least}.")
    return Lengths(
        args.query_length,
        args.document_length,
        args.batch_size,
        args.dtype,
        _question(args),
    )


def _question(args: argparse.Namespace) -> Question:
    if problem := bad_prompt(args.prompt):
        raise InputError(f"--prompt is {args.prompt!r}; {problem}.")
    found = {"prompt": args.prompt}
    found |= {"yes": args.yes} if args.yes else {}
    found |= {"no": args.no} if args.no is not None else {}
    if len(found) > 1 and not args.prompt:
        raise InputError("--yes and --no have an effect with --prompt only.")
    return Question(**found)


def open_scorer(
    reference: str, workdir: pathlib.Path | None, lengths: Lengths
) -> tuple[Searcher | PairScorer, dict[str, Any]]:
    """A retriever or a cross-encoder, and what its scores depend on.

    Raises:
      InputError: no such model, or a length that it does not take.
    """
    model = _opened(reference, workdir, lengths.question)
    limit = model.spec.encoder.max_length
    chosen = []
    for asked, trained, usual in (
        (lengths.query, model.query_length, _QUERY),
        (lengths.document, model.document_length, _DOCUMENT),
    ):
        chosen.append(asked or min(trained or usual, limit))
        if not 2 < chosen[-1] <= limit:
            raise InputError(f"{reference} takes 3 to {limit} tokens, not {asked}.")
    query, document = chosen
    facts = {
        "name": reference,
        "weights": model.digest(),
        "query_length": query,
        "document_length": document,
        "dtype": lengths.dtype,
        "batch_size": lengths.batch_size,
    }
    if lengths.question.prompt:
        facts |= dataclasses.asdict(lengths.question)
    tokenizer = TextTokenizer(model.tokenizer)
    how: dict[str, Any] = {"batch_size": lengths.batch_size, "dtype": lengths.dtype}
    params = jax.device_put(model.params)
    if isinstance(model.spec, CrossEncoderSpec):
        pairs = PairScorer(model.spec, params, tokenizer, query, document, **how)
        return pairs, facts
    return Searcher(
        TextEncoder(model.spec, tokenizer, **how), params, query, document
    ), facts


def _opened(
    reference: str, workdir: pathlib.Path | None, question: Question
) -> SavedModel:
    if reference.startswith("stage:"):
        if workdir is None:
            raise InputError(f"{reference}: name the run in --workdir.")
        folder = pathlib.Path(paths.local(workdir, "--workdir"))
        return open_model.open_portable(str(folder / reference[len("stage:") :]))
    if open_model.stages_folder(reference, weights=False) is None:
        model = open_model.open_model(reference, pathlib.Path(), cross_encoder=True)
        model = reranker.asked(model, question, "--")
        if isinstance(model.spec, CrossEncoderSpec):
            return model
    return open_model.open_portable(reference)
