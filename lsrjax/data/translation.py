"""Translates texts with a local model of Marian, M2M-100, NLLB or MADLAD.

With transformers and torch, or with CTranslate2, which computes the same several times
as fast. Both are optional, and are imported when a translator is opened.
"""

import dataclasses
import importlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from lsrjax.errors import InputError

ENGINES = ("torch", "ctranslate2")
_NLLB = re.compile("[a-z]{3}_[A-Z][a-z]{3}")
# Model type -> how the target language is said.
_KINDS = {"marian": "word", "m2m_100": "first token", "t5": "word"}


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How translations are searched for: beam search, never sampling.

    Attributes:
      beams: 1: greedy.
      max_length: tokens of a source text, which is cut, and of its translation.
      batch_size: texts at once.
    """

    beams: int
    max_length: int
    batch_size: int
    dtype: str


# Token ids of sources, the first token of translations or None, and the decoding, to
# token ids of translations.
Engine = Callable[[Sequence[list[int]], int | None, Decoding], list[list[int]]]


class Translator:
    """A model and its tokenizer, for one pair of languages.

    Attributes:
      longest: tokens of a text that the model takes; None: any number.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        tokenizer: pathlib.Path,
        source: str,
        target: str,
        *,
        engine: str = "torch",
        dtype: str = "float32",
    ):
        """Opens the model.

        Args:
          folder: of the model: Hugging Face's with safetensors, or CTranslate2's.
          tokenizer: a Hugging Face folder.
          source: the language's code in the model, as `en` or `eng_Latn`.
          target: the same.

        Raises:
          InputError: a missing library, a model of another kind, or a language that
            it does not have.
        """
        transformers = _library("transformers", "translate")
        _library("sentencepiece", "translate")
        self._kind, limit = _kind(tokenizer)
        # Other positions are computed for any length.
        self.longest = limit if self._kind == "word" else None
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                tokenizer, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{tokenizer}: no tokenizer ({error}).") from error
        self._prefix, self._start = self._said(source, target, str(tokenizer))
        open_engine = _torch if engine == "torch" else _ctranslate2
        self._engine: Engine = open_engine(folder, self._tokenizer, dtype)

    def _said(self, source: str, target: str, name: str) -> tuple[str, int | None]:
        """The text before each source, and the first token of each translation."""
        tokens = self._tokenizer.get_vocab()
        if self._kind == "first token":
            # NLLB's are tokens of the vocabulary.
            special = getattr(self._tokenizer, "lang_code_to_id", None) or {
                token: i for token, i in tokens.items() if _NLLB.fullmatch(token)
            }
            for code in (source, target):
                if code not in special:
                    raise _no_language(code, special, name)
            self._tokenizer.src_lang = source
            return "", int(special[target])
        marks = [token for token in tokens if re.fullmatch(r">>.+<<|<2\w+>", token)]
        if not marks:
            return "", None  # of a single pair of languages
        codes = {mark.strip("<>").removeprefix("2"): mark for mark in marks}
        if target not in codes:
            raise _no_language(target, codes, name)
        return f"{codes[target]} ", None

    def __call__(
        self, texts: Sequence[str], decoding: Decoding
    ) -> tuple[list[str], int]:
        """The translations, and how many texts were cut.

        Blank texts stay empty. A translation depends on its own text, and in its last
        bits on those of its batch: the same texts give the same translations.
        """
        asked = [i for i, text in enumerate(texts) if text.strip()]
        sources = [self._prefix + " ".join(texts[i].split()) for i in asked]
        ids = [self._tokenizer(text)["input_ids"] for text in sources]
        most, cut = decoding.max_length, 0
        for own in ids:
            if len(own) > most:
                # The last token ends the sentence.
                own[:] = [*own[: most - 1], own[-1]]
                cut += 1
        found = [""] * len(texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for first in range(0, len(order), decoding.batch_size):
            batch = order[first : first + decoding.batch_size]
            made = self._engine([ids[i] for i in batch], self._start, decoding)
            for i, own in zip(batch, made, strict=True):
                text = self._tokenizer.decode(own, skip_special_tokens=True)
                found[asked[i]] = text.strip()
        return found, cut


def _no_language(code: str, known, name: str) -> InputError:
    shown = ", ".join(sorted(known)[:20])
    return InputError(f"{name} has no language {code!r}; it has {shown}, …")


def _kind(folder: pathlib.Path) -> tuple[str, int | None]:
    """How the target language is said, and the number of positions, if limited."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _KINDS[config["model_type"]], config.get("max_position_embeddings")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder} is no Hugging Face folder of a model that translates, whose"
            f" config.json has the model_type {' or '.join(_KINDS)} (Marian, M2M-100"
            " and NLLB, MADLAD)."
        ) from error


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"Translating needs {name}: pip install 'lsrjax[{extra}]'."
        ) from error


def _torch(folder: pathlib.Path, tokenizer, dtype: str) -> Engine:
    torch = _library("torch", "translate")
    transformers = _library("transformers", "translate")
    if not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no .safetensors, and other weights may run code when read."
            " Take a revision that has them (Helsinki-NLP/opus-mt-…@refs/pr/N), or"
            " convert the model to CTranslate2."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} could not be opened: {error}") from error
    model = model.to(device).eval()
    pad = tokenizer.pad_token_id

    def translate(ids, start, decoding: Decoding) -> list[list[int]]:
        longest = max(map(len, ids))
        rows = [own + [pad] * (longest - len(own)) for own in ids]
        mask = [[1] * len(own) + [0] * (longest - len(own)) for own in ids]
        chosen = {} if start is None else {"forced_bos_token_id": start}
        with torch.inference_mode():
            made = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                num_beams=decoding.beams,
                max_length=decoding.max_length,
                do_sample=False,
                **chosen,
            )
        return [own[1:] if start is None else own[2:] for own in made.tolist()]

    return translate


def _ctranslate2(folder: pathlib.Path, tokenizer, dtype: str) -> Engine:
    ctranslate2 = _library("ctranslate2", "ctranslate2")
    if not (folder / "model.bin").is_file():
        raise InputError(
            f"{folder} is no model of CTranslate2, which has a model.bin: make one by"
            f" ct2-transformers-converter --model MODEL --output_dir {folder}."
        )
    try:
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        model = ctranslate2.Translator(str(folder), device=device, compute_type=dtype)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder} could not be opened: {error}") from error

    def translate(ids, start, decoding: Decoding) -> list[list[int]]:
        tokens = [tokenizer.convert_ids_to_tokens(own) for own in ids]
        prefix = None
        if start is not None:
            prefix = [[tokenizer.convert_ids_to_tokens([start])[0]]] * len(ids)
        made = model.translate_batch(
            tokens,
            target_prefix=prefix,
            beam_size=decoding.beams,
            # As in transformers, which counts the decoder's first token.
            max_decoding_length=decoding.max_length - 1 - (start is not None),
        )
        found = [one.hypotheses[0][start is not None :] for one in made]
        return [tokenizer.convert_tokens_to_ids(one) for one in found]

    return translate
