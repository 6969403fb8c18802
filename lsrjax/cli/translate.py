"""Translates a corpus with a local model, into a Parquet file for each language.

    lsrjax translate --texts docs.jsonl --model facebook/m2m100_418M --source en
        --target de,fr,zh --out translated
    lsrjax train --config configs/mtd_sparse.py
        --config.data.corpus='{"en": "docs.jsonl", "de": "translated/de.parquet"}'

Models are Marian (Helsinki-NLP/opus-mt-…), M2M-100, NLLB and MADLAD-400, with
safetensors. Where a model's code of a language differs from the name that data.corpus
has, write both: `--source en=eng_Latn --target de=deu_Latn,zh=zho_Hans`. Each file has
the columns docid and text, and in its metadata (`lsrjax.translation`) the model, its
digests and revision, the decoding and the digest of the source. The same command
resumes one that was stopped. See docs/training_data.md.
"""

import argparse
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from lsrjax import json_files, paths
from lsrjax.checkpoint import digests
from lsrjax.cli import exits
from lsrjax.cli.parsing import Parser
from lsrjax.convert.read import hub
from lsrjax.data.reading import unchanged_files
from lsrjax.data.reading.texts import read_texts
from lsrjax.data.translation import ENGINES, Decoding, Translator
from lsrjax.distributed import preemption, safe_output, trees
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError

METADATA = b"lsrjax.translation"
# Texts between two states that survive a stop: a row group of the file.
_PART = 4096
_STATE = "state.json"
_FILES = ("*.json", "*.safetensors", "*.spm", "*.model", "*.txt", "*.bin")
_OWN = (".json", ".safetensors", ".spm", ".model", ".bin")


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    translate(_parser().parse_args(argv))


def translate(args: argparse.Namespace) -> None:
    """Translates into each language as the flags say.

    Raises:
      InputError: texts, a model or an option that cannot be used.
    """
    texts = pathlib.Path(paths.local(args.texts, "--texts"))
    out = pathlib.Path(paths.local(args.out, "--out"))
    for name, least in (("beams", 1), ("max_length", 3), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}; at least {least}.")
    (source,) = languages(args.source, "--source", most=1).values()
    targets = languages(args.target, "--target")
    folder = _folder(args.model, args.engine)
    tokenizer = _folder(args.tokenizer, "torch") if args.tokenizer else folder
    decoding = Decoding(args.beams, args.max_length, args.batch_size, args.dtype)
    read_texts(texts)  # its errors before a folder is made
    made_of = {
        "texts": {"name": texts.name, "digest": unchanged_files.digest(texts)},
        "model": _state(args.model, folder),
        "engine": args.engine,
        "source": source,
        "decoding": vars(decoding),
    }
    out.mkdir(parents=True, exist_ok=True)
    for language, code in targets.items():
        path = out / f"{language}.parquet"
        if path.exists():
            print(f"{path} exists; it is kept.", flush=True)
            _check_same(path, made_of | {"target": code})
            continue
        translator = Translator(
            folder, tokenizer, source, code, engine=args.engine, dtype=args.dtype
        )
        if (longest := translator.longest) and args.max_length > longest:
            raise InputError(
                f"--max_length is {args.max_length}; {args.model} takes {longest}."
            )
        _to_language(
            path, read_texts(texts), translator, decoding, made_of | {"target": code}
        )


def languages(text: str, flag: str, most: int = 0) -> dict[str, str]:
    """Name to the model's code of each language in `de=deu_Latn,fr`.

    Raises:
      InputError: no language, one twice, or more than `most`.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, code = part.strip().partition("=")
        if not name.replace("-", "").replace("_", "").isalnum() or name in found:
            raise InputError(
                f"{flag} is {text!r}: write languages with commas between, each once,"
                " as de,fr or with the model's own codes, as de=deu_Latn."
            )
        found[name] = code or name
    if most and len(found) > most:
        raise InputError(f"{flag} is {text!r}; name one language.")
    return found


def _folder(name: str, engine: str) -> pathlib.Path:
    wanted = _FILES if engine != "torch" else [f for f in _FILES if f != "*.bin"]
    return hub.fetch(name, wanted)


def _state(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The model's name and contents: the commit of a hub id, else digests."""
    if not hub.is_local(name):
        return {"name": name, "revision": folder.name}
    own = sorted(p for p in folder.iterdir() if p.suffix in _OWN and p.is_file())
    return {"name": folder.name, "files": digests.of_files(folder, own)}


def _to_language(
    path: pathlib.Path,
    texts: Iterator[tuple[str, str]],
    translator: Translator,
    decoding: Decoding,
    made_of: dict[str, Any],
) -> None:
    """Writes the translations of all texts; those of earlier parts are kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = path.with_name(path.name + ".partial")
    parts, cut = _begun(folder, made_of)
    rows = parts * _PART
    if parts:
        print(f"{path.name}: {rows:,} texts are translated already.", flush=True)
    rest = itertools.islice(texts, rows, None)
    while some := list(itertools.islice(rest, _PART)):
        found, own = translator([text for _, text in some], decoding)
        table = pa.table({"docid": [key for key, _ in some], "text": found})
        part = folder / f"{parts:06d}.parquet"
        pq.write_table(table, part.with_suffix(".tmp"))
        part.with_suffix(".tmp").replace(part)
        parts, cut, rows = parts + 1, cut + own, rows + len(some)
        _record(folder, made_of, parts, cut)
        print(f"{path.name}: {rows:,} texts", flush=True)
    facts = json.dumps(made_of | {"rows": rows, "cut": cut}, ensure_ascii=False)
    schema = pa.schema(
        [("docid", pa.string()), ("text", pa.string())],
        metadata={METADATA: facts.encode()},
    )
    whole = folder / "whole.tmp"
    with pq.ParquetWriter(whole, schema, compression="zstd") as file:
        for number in range(parts):
            table = pq.read_table(folder / f"{number:06d}.parquet")
            file.write_table(table.cast(schema))
    whole.replace(path)
    shutil.rmtree(folder)
    print(f"{rows:,} texts in {path}" + (f"; {cut:,} were cut" if cut else ""))


def _begun(folder: pathlib.Path, made_of: dict[str, Any]) -> tuple[int, int]:
    """Finished parts, and the texts that were cut in them."""
    state = folder / _STATE
    if not state.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _record(folder, made_of, 0, 0)
        return 0, 0
    advice = f"Remove {folder}; its texts are translated again."
    known, parts, cut = json_files.read_json(
        state, advice, lambda v: (dict(v["made_of"]), int(v["parts"]), int(v["cut"]))
    )
    trees.check_same(known, made_of, f"{folder} was begun")
    for number in range(parts):
        if not (folder / f"{number:06d}.parquet").is_file():
            raise InputError(f"{folder} lacks its part {number}. {advice}")
    return parts, cut


def _record(folder: pathlib.Path, made_of, parts: int, cut: int) -> None:
    values = {"made_of": made_of, "parts": parts, "cut": cut}
    json_files.write_json(folder / _STATE, values)


def _check_same(path: pathlib.Path, made_of: dict[str, Any]) -> None:
    """Refuses a finished file that was made otherwise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = dict(json.loads((pq.read_schema(path).metadata or {})[METADATA]))
        del known["rows"], known["cut"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} exists, and was not written by this command. Remove it, or name"
            " another --out."
        ) from error
    trees.check_same(known, made_of, f"{path} was made")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lsrjax translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--texts", required=True, help=".txt .jsonl .tsv .csv .parquet, maybe .gz .zst")
    add("--model", required=True, help="a folder or hub id, maybe id@commit")
    add("--source", required=True, metavar="LANGUAGE", help="en, or en=eng_Latn")
    add("--target", required=True, metavar="LANGUAGES", help="de,fr or de=deu_Latn,…")
    add("--out", required=True, help="a folder, for LANGUAGE.parquet")
    add("--engine", choices=ENGINES, default="torch")
    add("--tokenizer", help="ctranslate2: the Hugging Face folder or hub id")
    add("--beams", type=int, default=4, help="of the search; 1: greedy (4)")
    add(
        "--max_length", type=int, default=256, help="tokens; longer texts are cut (256)"
    )
    add("--batch_size", type=int, default=32, help="texts at once (32)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
