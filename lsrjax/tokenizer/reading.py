"""Reads tokenizer folders as transformers' AutoTokenizer does.

`tokenizer.json` is only a part of a tokenizer: `tokenizer_config.json`,
`special_tokens_map.json`, `added_tokens.json` and the model type in `config.json`
change tokens, too. transformers' reading of all of them is the truth; texts are encoded
with its backend. If `tokenizer.json` alone defines the tokens, as in folders that this
package writes, transformers is not asked, which would take a second.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from lsrjax.errors import InputError
from lsrjax.models.backbones.model_types import MODEL_TYPES, RELATIVE
from lsrjax.tokenizer.ask_transformers import PROBES, asked
from lsrjax.tokenizer.files import (
    ADDED,
    CONFIG,
    MODEL_CONFIG,
    SPECIAL,
    TOKENIZER,
    files,
    holds_tokenizer,
    read_object,
    read_text,
)

# The class of a tokenizer that is nothing but its tokenizer.json: transformers 4 and 5
# know the first, 5 writes the second.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Model types for which AutoTokenizer uses such a class, and does not change what it
# reads: of Mistral's it may replace the pre-tokenizer.
_PLAIN_MODELS = {None, "milco", *MODEL_TYPES} - {"mistral"}
ROLES = tuple(f"{role}_token" for role in "bos eos unk sep pad cls mask".split())
# Other keys of a plain tokenizer_config.json that do not change a token.
_HARMLESS = (
    "tokenizer_class",
    "model_max_length",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "backend",
    "is_local",
    "local_files_only",
    "name_or_path",
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """A folder's tokenizer.

    Attributes:
      json: a `tokenizer.json` that gives its tokens; truncation and padding are left to
        the caller.
      roles: token of `pad_token`, `mask_token` and the like, if known.
      truncation_side: the end that is cut off, "right" or "left".
      splits_special: special tokens in texts are text.
      max_length: `model_max_length`; None if the folder does not say.
      input_names: inputs of the model in transformers; None if the folder does not say.
      added: tokens that `tokenizer.json` lacks, by name; the other files add them.
    """

    folder: pathlib.Path
    json: str
    roles: Mapping[str, str]
    truncation_side: str = "right"
    splits_special: bool = False
    max_length: int | None = None
    input_names: tuple[str, ...] | None = None
    added: tuple[str, ...] = ()

    def tokenizer(self, max_length: int | None = None, **cut) -> tokenizers.Tokenizer:
        """A new tokenizer, which the caller may change.

        `cut` has options of `enable_truncation`; max_length None: no truncation.
        """
        made = tokenizers.Tokenizer.from_str(self.json)
        made.encode_special_tokens = self.splits_special
        made.no_padding()
        if max_length is None:
            made.no_truncation()
        else:
            made.enable_truncation(max_length, direction=self.truncation_side, **cut)
        return made


def read(folder: str | pathlib.Path) -> Reading:
    """Reads a folder as AutoTokenizer does, without running code from it.

    Raises:
      InputError: there is no tokenizer, it cannot be read, or it needs something that
        is not supported; names the file, and the key at fault.
    """
    folder = pathlib.Path(folder)
    state = tuple(
        (path.name, stat.st_mtime_ns, stat.st_size)
        for path in files(folder)
        for stat in (path.stat(),)
    )
    return _read(folder, state)


@functools.lru_cache(maxsize=16)
def _read(folder: pathlib.Path, _state: tuple) -> Reading:
    objects = {
        path.name: read_object(path)
        for path in files(folder)
        if path.name in (CONFIG, SPECIAL, ADDED, MODEL_CONFIG)
    }
    _refuse_code(folder, objects)
    if not holds_tokenizer(folder):
        raise InputError(_nothing(folder))
    raw = None
    if (folder / TOKENIZER).is_file():
        text, raw = _tokenizer_json(folder / TOKENIZER)
        if _is_plain(objects, raw):
            return _checked(_plain(folder, text, objects.get(CONFIG, {})))
    (answer,) = asked([folder])
    return _checked(_reading(folder, answer, raw, objects), answer)


def _nothing(folder: pathlib.Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = f" (found: {', '.join(names[:20])})" if names else ""
    return (
        f"No {TOKENIZER} in {folder}{found}. Save the tokenizer there with"
        " transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _tokenizer_json(path: pathlib.Path) -> tuple[str, tokenizers.Tokenizer]:
    text = read_text(path)
    try:
        made = tokenizers.Tokenizer.from_str(text)
        made.no_truncation()
        made.encode_batch(PROBES)  # fails without a token for what it does not know
        return text, made
    # The library raises bare Exception, and in some releases panics.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(f"{path} is not a tokenizer: {error}. Save it again.") from (
            error
        )


def _refuse_code(folder: pathlib.Path, objects: Mapping[str, dict]) -> None:
    config = objects.get(CONFIG, {})
    own = config.get("auto_map")
    own = own.get("AutoTokenizer") if isinstance(own, dict) else own
    if own:
        raise InputError(
            f"{folder / CONFIG}: auto_map names {own!r}, which is code of its own and"
            " is not run. Use a model with a tokenizer of transformers' own."
        )
    for name in (CONFIG, MODEL_CONFIG):
        named = objects.get(name, {}).get("tokenizer_class")
        if named is not None and not (
            isinstance(named, str)
            and re.fullmatch(r"(?!Auto)\w*Tokenizer(Fast|sBackend)?", named)
        ):
            raise InputError(
                f"{folder / name}: tokenizer_class is {named!r}, which is no tokenizer"
                " of transformers. Save the tokenizer again."
            )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _is_plain(objects: Mapping[str, dict], raw: tokenizers.Tokenizer) -> bool:
    """Whether tokenizer.json alone defines the tokens; false in doubt."""
    config, model = objects.get(CONFIG), objects.get(MODEL_CONFIG)
    if raw.post_processor is None or objects.get(ADDED):
        return False
    if config is None:
        return model is None and not objects.get(SPECIAL)
    if config.get("tokenizer_class") not in PLAIN_CLASSES:
        return False
    if (model or {}).get("model_type") not in _PLAIN_MODELS:
        return False
    decoder = raw.get_added_tokens_decoder()
    special = {token.content for token in decoder.values() if token.special}

    def plain(key, value) -> bool:
        if key in ROLES:
            return value is None or (
                isinstance(_content(value), str) and _content(value) in special
            )
        if key in ("extra_special_tokens", "additional_special_tokens"):
            return not value or (
                isinstance(value, list)
                and all(isinstance(_content(token), str) for token in value)
                and {_content(token) for token in value} <= special
            )
        if key == "added_tokens_decoder":
            return isinstance(value, dict) and all(
                id.isdecimal() and _same(decoder.get(int(id)), token)
                for id, token in value.items()
            )
        if key == "truncation_side":
            return value in ("right", "left")
        if key == "padding_side":
            return value == "right"
        return key in _HARMLESS or (key == "split_special_tokens" and value is False)

    same = {key: config.get(key) for key in objects.get(SPECIAL, {})}
    return all(plain(key, value) for key, value in config.items()) and all(
        key in ROLES and _content(value) == _content(same[key])
        for key, value in objects.get(SPECIAL, {}).items()
    )


def _same(token: tokenizers.AddedToken | None, values: Any) -> bool:
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return token is not None and values == {
        name: getattr(token, name) for name in fields
    }


def _plain(folder: pathlib.Path, text: str, config: Mapping[str, Any]) -> Reading:
    length, names = config.get("model_max_length"), config.get("model_input_names")
    return Reading(
        folder,
        text,
        {role: _content(config[role]) for role in ROLES if config.get(role)},
        config.get("truncation_side", "right"),
        max_length=_length(length),
        input_names=tuple(names) if isinstance(names, list) else None,
    )


def _length(value: Any) -> int | None:
    """A limit; transformers writes 10^30 for none."""
    known = isinstance(value, int | float) and 0 < value < 2**31
    return int(value) if known else None


def _reading(
    folder: pathlib.Path,
    answer: Mapping[str, Any],
    raw: tokenizers.Tokenizer | None,
    objects: Mapping[str, dict],
) -> Reading:
    if answer.get("slow"):
        raise InputError(
            f"{folder}: the tokenizer is a {answer['slow']}, which has no fast form: it"
            f" runs in Python, and there is no {TOKENIZER} of it. Use a model with a"
            " fast tokenizer."
        )
    if "error" in answer:
        set_there = [
            f"{name} ({', '.join(objects[name])})"
            for name in (CONFIG, SPECIAL, ADDED)
            if objects.get(name)
        ]
        raise InputError(
            f"{folder}: transformers' AutoTokenizer cannot read the tokenizer:"
            f" {answer['error']}. Look at {' and '.join(set_there) or TOKENIZER}; save"
            " the tokenizer again."
        )
    model_type = objects.get(MODEL_CONFIG, {}).get("model_type")
    if answer["padding_side"] != "right" and model_type not in RELATIVE:
        raise InputError(
            f"{folder}: padding_side is {answer['padding_side']!r}, by {CONFIG}, the"
            f" padding in {TOKENIZER} or the tokenizer's class. It moves the positions"
            " of tokens by the length of other texts, which is not done here. Set"
            f" padding_side to 'right' in {CONFIG}."
        )
    known = raw.get_vocab() if raw is not None else None
    read = Reading(
        folder,
        answer["json"],
        answer["roles"],
        answer["truncation_side"],
        answer["splits_special"],
        _length(answer["max_length"]),
        tuple(answer["input_names"]),
    )
    if known is None:
        return read
    added = read.tokenizer().get_vocab().keys() - known.keys()
    return dataclasses.replace(read, added=tuple(sorted(added)))


def _checked(read: Reading, answer: Mapping[str, Any] | None = None) -> Reading:
    if answer is None or not (wrong := differing(read, answer)):
        return read
    raise InputError(
        f"{read.folder}: transformers' {answer['class']} gives {wrong[0]!r} other"
        f" tokens than its own {TOKENIZER} does, which is what is used here. Set"
        f" tokenizer_class in {CONFIG} to {PLAIN_CLASSES[0]!r} if that is meant."
    )


def differing(read: Reading, answer: Mapping[str, Any]) -> list[str]:
    """Texts of an answer of `asked` whose tokens differ in a reading."""
    tokenizer, texts, wrong = read.tokenizer(), answer["texts"], []
    for length, special, rows in answer["probes"]:
        if length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(length, direction=read.truncation_side)
        found = tokenizer.encode_batch(texts, add_special_tokens=special)
        pairs = zip(texts, found, rows, strict=True)
        wrong += [text for text, one, row in pairs if one.ids != row]
    return wrong
