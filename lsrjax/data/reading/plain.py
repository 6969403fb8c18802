"""Files of many kinds as plain lines: decompressed, and a line for each row of CSV.

Anything but plain lines is converted into an unnamed temporary file (in `TMPDIR`).
"""

import ast
import codecs
import csv
import io
import json
import os
import re
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator

from lsrjax.errors import InputError

# Kinds of files by their extension, in any case.
JSON, CSV, TSV, PARQUET = "json", "csv", "tsv", "parquet"
TSV_ROWS = "tsv rows"  # TSV whose first line names its columns
_KINDS = {
    ".jsonl": JSON,
    ".json": JSON,
    ".ndjson": JSON,
    ".jsonlines": JSON,
    ".tsv": TSV,
    ".csv": CSV,
    ".parquet": PARQUET,
}
_PACKED_ENDS = (".gz", ".zst", ".bz2")
KNOWN = (
    ".jsonl (.ndjson, .json), .tsv, .csv, all maybe with .gz, .zst or .bz2, .parquet"
)

# Starts a line of JSON, a text, that says why a row is bad.
WRONG = "\0wrong: "
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_HEAD = 1 << 16  # bytes that identify a file's type
_COPIED = 1 << 20


def ending(path: str | os.PathLike) -> str:
    """The extension of a file's name, in lower case, without that of a compressor."""
    name = os.fspath(path).lower()
    for end in _PACKED_ENDS:
        name = name.removesuffix(end)
    return os.path.splitext(name)[1]


def or_packed(path: str) -> str:
    """The path, or that of the compressed file if only that exists."""
    if os.path.exists(path):
        return path
    packed = (path + end for end in _PACKED_ENDS)
    return next((one for one in packed if os.path.exists(one)), path)


def kind_of(path: str | os.PathLike) -> str | None:
    """`JSON`, `CSV`, `TSV` or `PARQUET`, by the extension; None: unknown."""
    packed = os.fspath(path).lower().endswith(_PACKED_ENDS)
    kind = _KINDS.get(ending(path))
    return None if packed and kind == PARQUET else kind


def is_known(path: str | os.PathLike) -> bool:
    """Whether `kind_of` knows the extension."""
    return kind_of(path) is not None


def opened(path: str | os.PathLike, kind: str = TSV) -> tuple[io.FileIO, bool, bool]:
    """A file of lines, unbuffered.

    Args:
      kind: `TSV` for plain lines; `JSON`, whose arrays of objects become lines of
        JSON; `CSV` and `TSV_ROWS`, whose rows become lines of JSON with the names in
        the first line as keys; a row with too few or too many cells becomes a text
        (`WRONG`).

    Returns:
      The file of lines, whether it is the original file, and whether its line numbers
      are the original ones.

    Raises:
      InputError: it is not UTF-8 text, or is damaged; says what it is.
    """
    try:
        file: io.FileIO = open(path, "rb", buffering=0)  # noqa: SIM115  (the caller's)
        head = file.read(_HEAD)
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}.") from e
    own = True
    codec = next((c for magic, c in _PACKED.items() if head.startswith(magic)), None)
    if codec:
        file.close()
        file, own = _copied(path, _unpacked(path, codec)), False
        file.seek(0)
        head = file.read(_HEAD)
    _check_text(path, head)
    rows: Iterable | None = None
    if kind == JSON:
        _check_one_a_line(path, head)
        if re.match(rb"(?:\xef\xbb\xbf)?\s*\[\s*[{\]]", head):
            rows = _elements(path, file)
    elif kind in (CSV, TSV_ROWS):
        rows = _records(path, file, head, kind)
    if rows is not None:
        lines = _copied(path, (json.dumps(row).encode() + b"\n" for row in rows))
        file.close()
        return lines, False, False
    return file, own, True


def _copied(path, parts: Iterable[bytes]) -> io.FileIO:
    """An unnamed temporary file of some parts; it disappears when closed."""
    copy = tempfile.TemporaryFile(prefix="lsrjax-lines-", buffering=0)  # noqa: SIM115
    try:
        with io.BufferedWriter(io.FileIO(os.dup(copy.fileno()), "w"), _COPIED) as out:
            for part in parts:
                out.write(part)
    except OSError as e:
        copy.close()
        raise InputError(
            f"{path} could not be unpacked into {tempfile.gettempdir()}: {e}. Make room"
            " there, or let TMPDIR name another folder."
        ) from e
    return copy


def _unpacked(path, codec: str) -> Iterator[bytes]:
    import pyarrow as pa

    with pa.OSFile(os.fspath(path)) as raw:
        stream = pa.CompressedInputStream(raw, codec)
        while True:
            try:
                part = stream.read(_COPIED)
            except (OSError, pa.ArrowInvalid) as e:
                raise InputError(
                    f"{path} is not a whole {codec} file: {e}. Copy or write it again."
                ) from e
            if not part:
                return
            yield part


def _check_text(path, head: bytes) -> None:
    _check_pointer(path, head)
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive. Unpack it.")
    if found := _other_encoding(head):
        raise InputError(
            f"{path} is in {found}; UTF-8 is needed. Convert it:"
            f" iconv -f {found} -t UTF-8 {path} > converted"
        )
    for magic, what, todo in (
        (b"PAR1", "a Parquet file", "Let its name end in .parquet."),
        (b"PK\3\4", "a zip archive", "Unpack it."),
        (b"\xfd7zXZ", "packed by xz", "Unpack it: unxz."),
        *((magic, "packed twice", "Unpack it once.") for magic in _PACKED),
    ):
        if head.startswith(magic):
            raise InputError(f"{path} is {what}. {todo}")
    if b"\r" in head and b"\n" not in head and b"\r" in head.rstrip():
        raise InputError(
            f"{path}: its lines end in CR alone, as on old Macs; LF is needed. Convert"
            f" it: tr '\\r' '\\n' < {path} > converted"
        )


def _other_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the byte order mark or the places of zero bytes."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if head.startswith(mark):
            return name
    # In ASCII, every second byte, or three of four, are zero.
    zeros = [2 * head[at::4].count(0) > len(head[at::4]) for at in range(4)]
    if len(head) < 4 or sum(zeros) < 2:
        return None
    return "UTF-16" if zeros in ([0, 1, 0, 1], [1, 0, 1, 0]) else "UTF-32"


def check_fetched(path: str | os.PathLike) -> None:
    """Raises InputError for a Git LFS pointer, which a clone may have for the data."""
    try:
        with open(path, "rb") as file:
            _check_pointer(path, file.read(64))
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}.") from e


def _check_pointer(path, head: bytes) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a pointer of Git LFS, not the data. Fetch it: git lfs pull."
        )


def _check_one_a_line(path, head: bytes) -> None:
    if re.match(rb"(?:\xef\xbb\xbf)?\s*(?:\{|\[(?!\s*[{\]]))[ \t]*\r?\n", head):
        raise InputError(
            f"{path} is pretty-printed: its objects go over several lines. Write one"
            f" object a line: jq -c . {path} > rows.jsonl (of an array of them: jq -c"
            " '.[]')."
        )


def _elements(path, file: io.FileIO) -> list:
    file.seek(0)
    try:
        return json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise InputError(
            f"{path} is a JSON array that cannot be read ({e}). Write it again, whole,"
            " or as .jsonl: one object a line."
        ) from e


def _records(path, file: io.FileIO, head: bytes, kind: str) -> Iterator[dict | str]:
    """Rows of CSV, or of TSV, whose first line names the columns."""
    file.seek(0)
    ends = "" if kind == CSV else "\n"  # the csv module detects line ends
    text = io.TextIOWrapper(io.BufferedReader(file), "utf-8-sig", newline=ends)
    if kind == CSV:
        first = head.splitlines()[0] if head.strip() else b""
        comma = ";" if b";" in first and b"," not in first else ","
        csv.field_size_limit(2**31 - 1)
        cells = csv.reader(text, delimiter=comma, strict=True)
        numbered: Iterator = ((cells.line_num, row) for row in cells)
    else:
        # Texts contain quotes there, so that these do not join cells or lines.
        numbered = (
            (number, [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")])
            for number, line in enumerate(text, start=1)
        )
    names: list[str] | None = None
    number = 0
    try:
        for number, row in numbered:
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [cell.strip() for cell in row]
                _check_names(path, names)
                continue
            if len(row) != len(names):
                todo = "Quote texts that hold commas."
                if kind != CSV:
                    todo = "Take tabs out of the texts, or write it as .jsonl."
                yield (
                    f"{WRONG}line {number} of the file has {len(row)} cells, but the"
                    f" first names {len(names)} columns ({', '.join(names)}). {todo}"
                )
                continue
            yield {
                name: _value(name, cell)
                for name, cell in zip(names, row, strict=True)
                if name  # pandas' index has none
            }
    except UnicodeDecodeError as e:
        raise InputError(
            f"{path}, line {_undecoded(file)} is not UTF-8 ({e.reason}). Save the file"
            " as UTF-8; one in Latin-1: iconv -f latin1 -t utf-8."
        ) from e
    except csv.Error as e:
        raise InputError(
            f"{path} is not CSV after line {number} ({e}). Is a quote not closed there?"
            ' Inside a quoted text, a quote is written twice: "".'
        ) from e
    finally:
        text.detach().detach()  # the caller closes the file


def _undecoded(file: io.FileIO) -> int:
    """The number of the first line that is not UTF-8."""
    file.seek(0)
    lines = 1
    with io.BufferedReader(io.FileIO(os.dup(file.fileno()))) as reader:
        for line in reader:
            try:
                line.decode()
            except UnicodeDecodeError:
                break
            lines += 1
    return lines


def _unquoted(cell: str) -> str:
    """A cell of TSV as it was before a writer of CSV, such as pandas, quoted it.

    Such a writer also doubles each quote inside a cell. A cell without a doubled quote
    is taken for a text that has quotes of its own around it.
    """
    inside = cell[1:-1].replace('""', "")
    quoted = len(cell) > 3 and cell[0] == cell[-1] == '"' and '"' not in inside
    return cell[1:-1].replace('""', '"') if quoted and '""' in cell[1:-1] else cell


def _check_names(path, names: list[str]) -> None:
    if len(names) == 1 and "\t" in names[0]:
        raise InputError(
            f"{path}: its first line has tabs between the columns, and no comma. Name"
            " the file .tsv."
        )
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise InputError(
            f"{path}: two columns have one name in its first line ({', '.join(names)})."
            " The first line has to name the columns, each once."
        )


def _value(name: str, cell: str):
    """A cell: a text, or a list of texts in Python's or JSON's notation; null if empty.

    In columns of scores and labels, a number or a list of them; of ids, a list of
    either.
    """
    if not cell.strip():
        return None
    scores = re.search("score|label", name, re.IGNORECASE) is not None
    if scores or cell.startswith("["):
        for parse in (json.loads, _literal):
            value = _tried(parse, cell)
            if scores and isinstance(value, float | int | list):
                return value
            allowed = str | int if name.endswith("ids") else str
            if isinstance(value, list) and all(isinstance(v, allowed) for v in value):
                return value
    return cell


def _literal(cell: str):
    """A value in Python's notation; of texts also without commas, as NumPy prints them.

    Python itself joins texts that have no comma between.
    """
    value = ast.literal_eval(cell)
    if not isinstance(value, list):
        return value
    tokens = tokenize.generate_tokens(io.StringIO(cell).readline)
    texts = [token.string for token in tokens if token.type == tokenize.STRING]
    whole = len(texts) == len(value) or not all(isinstance(v, str) for v in value)
    return value if whole else [ast.literal_eval(text) for text in texts]


def _tried(parse: Callable, cell: str):
    try:
        return parse(cell)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        return None
