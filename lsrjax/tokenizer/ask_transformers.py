"""Asks transformers how it reads tokenizer folders."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from lsrjax.errors import InputError
from lsrjax.tokenizer import run_transformers
from lsrjax.tokenizer.files import MODEL_CONFIG, files, read_object, read_text

# Scripts, spaces, punctuation, marks and no text at all: where tokenizers differ.
PROBES = (
    "",
    "a",
    " two  words ",
    "Don't stop: [x] (y), 3.5% #1!",
    "UPPER Camel lower",
    "Größe café crème Ångström",
    "cafe\u0301 A\u030angstrom",
    "Привет, мир",
    "Γειά σου κόσμε ΟΔΟΣ",
    "İstanbul ISPARTA ıslak",
    "你好，世界 漢字かな混じり文",
    "こんにちは世界。カタカナ ｶﾀｶﾅ",
    "안녕 세상",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีโลก",
    "🙂 ok 👩‍👩‍👧",
    "\nline\nbreak\ttab\u00a0space\u3000wide",
    "ﬁne ½ ² Ⅳ ＡＢＣ",
    "a\u200bb soft\u00adhyphen",
    "[CLS] [MASK] [SEP] [PAD] [UNK]",
    "<s> <mask> </s> <pad> <unk>",
)
_FOR_TRANSFORMERS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def asked(
    folders: Sequence[pathlib.Path], texts: Sequence[str] = PROBES
) -> list[dict[str, Any]]:
    """What transformers' AutoTokenizer makes of folders; see `run_transformers`.

    It reads copies that contain only the tokenizer's files, without byte order marks.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="lsrjax-tokenizer-") as place:
            return _asked(folders, texts, pathlib.Path(place))
    except OSError as error:
        raise InputError(
            f"transformers could not be asked for the tokenizer in {folders[0]}:"
            f" {error}. It takes a little space for temporary files (TMPDIR)."
        ) from error


# The last answers without an error, by digests of the files and the texts: an answer
# depends on nothing else, and takes a process that imports transformers.
_ANSWERS: dict[bytes, str] = {}
_KEPT = 16


def _asked(
    folders: Sequence[pathlib.Path], texts: Sequence[str], place: pathlib.Path
) -> list[dict[str, Any]]:
    copies = [place / str(number) for number in range(len(folders))]
    for folder, copy in zip(folders, copies, strict=True):
        _copy(folder, copy)
    keys = [_digest(copy, texts) for copy in copies]
    missing = [c for c, key in zip(copies, keys, strict=True) if key not in _ANSWERS]
    answers = _answers(folders[0], missing, texts, place) if missing else []
    fresh, found = dict(zip(missing, answers, strict=True)), []
    for folder, copy, key in zip(folders, copies, keys, strict=True):
        if copy not in fresh:
            one = json.loads(_ANSWERS[key])
        elif "error" in (one := fresh[copy]):
            one["error"] = one["error"].replace(str(copy), str(folder))
        else:
            _ANSWERS[key] = json.dumps(one)
        found.append(one)
    for key in list(_ANSWERS)[:-_KEPT]:
        del _ANSWERS[key]
    return found


def _digest(copy: pathlib.Path, texts: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(json.dumps(list(texts)).encode())
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        digest.update(json.dumps([path.name, len(content)]).encode() + content)
    return digest.digest()


def _answers(
    first: pathlib.Path,
    copies: Sequence[pathlib.Path],
    texts: Sequence[str],
    place: pathlib.Path,
) -> list[dict[str, Any]]:
    """Those of a process, for copies of folders of which an error names the first."""
    question, answer = place / "question.json", place / "answer.json"
    asked = {"folders": list(map(str, copies)), "texts": list(texts)}
    question.write_text(json.dumps(asked))
    # As a file, not as a module of the package, and with a safe path (-P), so that
    # modules in the current folder are not imported. In its own session, so that a
    # signal that asks this program to save does not end it.
    command = [
        sys.executable,
        "-P",
        run_transformers.__file__,
        str(question),
        str(answer),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | _FOR_TRANSFORMERS,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    if not answer.is_file():
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise InputError(
            f"transformers could not be asked for the tokenizer in {first}"
            f" (exit code {done.returncode}: {last}). Install transformers 5."
        )
    return json.loads(answer.read_text(encoding="utf-8"))


def _copy(folder: pathlib.Path, to: pathlib.Path) -> None:
    to.mkdir()
    for path in files(folder):
        with open(path, "rb") as file:
            marked = file.read(3) == b"\xef\xbb\xbf"
        if path.name == MODEL_CONFIG:
            values = read_object(path)
            values.pop("auto_map", None)
            (to / path.name).write_text(json.dumps(values), encoding="utf-8")
        elif marked:
            (to / path.name).write_text(read_text(path), encoding="utf-8")
        else:
            (to / path.name).symlink_to(path.absolute())
