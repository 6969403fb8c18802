"""Makes the embedded data set from the full set of Debian package descriptions.

    python -m lsrjax.data.debian_texts.make --source DIR --out DIR

The source folder contains `train.parquet`, `dev.parquet` and `test.parquet` with the
string columns id, package, group, lang, title, text. Two runs write identical files:
rows are drawn by the hash of their id, and the tokenizers are trained in a fixed order.
"""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lsrjax.data.debian_texts import card as debian_card
from lsrjax.data.debian_texts.tokenizers import (
    train_english,
    train_multilingual,
    write_tokenizer,
)
from lsrjax.tokenizer.writing import SPECIAL_TOKENS

LANGUAGES = ("da", "de", "es", "fr", "it", "ja", "ko", "pl", "pt", "ru", "uk", "zh")
COLUMNS = ("id", "package", "group", "lang", "title", "text")
MAX_BYTES = 5_000_000

# Limits on the rows of one language, and the number of English rows (test keeps all).
CAPS = {"train": 4500, "dev": 100, "test": 200}
ENGLISH_ROWS = {"train": 19_000, "dev": 600}

# Limits on a text's characters, for which 95 % of the texts stay within 64 tokens.
MAX_CHARS = {
    "en": 220,
    "da": 182,
    "de": 186,
    "es": 205,
    "fr": 194,
    "it": 195,
    "ja": 108,
    "ko": 111,
    "pl": 174,
    "pt": 194,
    "ru": 172,
    "uk": 163,
    "zh": 92,
}

SENTENCE_END = re.compile(r"[.!?](?= [^a-z])|[。！？]")


def cut(text: str, limit: int) -> str:
    """Cuts a text to `limit` characters, keeping a short last paragraph.

    A Debian description begins with what the packages of one source share and ends
    with what is particular to this package, so the end is worth more than the middle.

    Returns:
        The text on one line, cut at the end of a sentence, of a word or, in a script
        without spaces, of a character.
    """
    paragraphs = [" ".join(part.split()) for part in text.split("\n")]
    paragraphs = [part for part in paragraphs if part]
    whole = " ".join(paragraphs)
    if len(whole) <= limit:
        return whole
    last = paragraphs[-1]
    if len(paragraphs) == 1 or len(last) > limit // 2:
        return _cut_head(whole, limit)
    return _cut_head(" ".join(paragraphs[:-1]), limit - len(last) - 1) + " " + last


def _cut_head(line: str, limit: int) -> str:
    if len(line) <= limit:
        return line
    # One more character shows whether a sentence or a word ends right at the limit.
    head = line[: limit + 1]
    ends = [m.end() for m in SENTENCE_END.finditer(head) if m.end() <= limit]
    if ends and ends[-1] >= limit // 2:
        return head[: ends[-1]]
    space = head.rfind(" ")
    return head[:space] if space >= limit // 2 else line[:limit]


def read_source(path: Path) -> list[dict[str, str]]:
    """Reads one split: chosen languages, texts cut, ids shortened, no empty field.

    Translations without an English row are left out.

    Raises:
        ValueError: if a column of `COLUMNS` is missing, or short ids are not unique.
    """
    schema = pq.read_schema(path)
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)} (it has "
            f"{', '.join(schema.names)}); give the full data set as --source"
        )
    rows, full_ids = [], defaultdict(set)
    for row in pq.read_table(path, columns=list(COLUMNS)).to_pylist():
        if row["lang"] not in MAX_CHARS:
            continue
        full_ids[row["id"][:12]].add(row["id"])
        row["id"] = row["id"][:12]
        row["title"] = " ".join(row["title"].split())
        row["text"] = cut(row["text"], MAX_CHARS[row["lang"]])
        if row["title"] and row["text"]:
            rows.append(row)
    clashes = [sorted(ids) for ids in full_ids.values() if len(ids) > 1]
    if clashes:
        raise ValueError(f"{path}: ids {clashes[0]} share their first 12 digits")
    english = {row["id"] for row in rows if row["lang"] == "en"}
    return [row for row in rows if row["id"] in english]


def choose(rows: list[dict[str, str]], split: str) -> list[dict[str, str]]:
    """Draws the rows of one split, the same ones every time.

    Test rows are drawn by the hash of their id alone. Train and dev prefer ids that
    exist in many languages, and fill up with English rows of new groups.

    The chosen rows are in the order of (lang, package, id).
    """
    ids_of, group_of = defaultdict(set), {}
    for row in rows:
        ids_of[row["lang"]].add(row["id"])
        group_of[row["id"]] = row["group"]
    spread = Counter(row["id"] for row in rows)

    def draw(row_id: str) -> str:
        return hashlib.sha256(row_id.encode()).hexdigest()

    def rank(row_id: str) -> tuple[int, str]:
        return (0 if split == "test" else -spread[row_id], draw(row_id))

    keep = {lang: sorted(ids_of[lang], key=rank)[: CAPS[split]] for lang in LANGUAGES}
    english = set().union(*keep.values())
    rest = sorted(ids_of["en"] - english, key=draw)
    seen = {group_of[row_id] for row_id in english}
    first_of_group: list[str] = []
    others: list[str] = []
    for row_id in rest:
        fresh = group_of[row_id] not in seen
        seen.add(group_of[row_id])
        (first_of_group if fresh else others).append(row_id)
    free = max(0, ENGLISH_ROWS.get(split, len(ids_of["en"])) - len(english))
    kept = {lang: set(ids) for lang, ids in keep.items()}
    kept["en"] = english | set((first_of_group + others)[:free])
    chosen = [row for row in rows if row["id"] in kept[row["lang"]]]
    return sorted(chosen, key=lambda row: (row["lang"], row["package"], row["id"]))


def write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Writes rows, dicts with the keys of `COLUMNS`, as Parquet.

    Each column is one page: a page is compressed on its own, so zstd sees all of it.
    """
    table = pa.table(
        {name: pa.array([row[name] for row in rows], pa.string()) for name in COLUMNS}
    )
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=22,
        use_dictionary=["id", "package", "group", "lang"],
        row_group_size=1 << 20,
        data_page_size=1 << 28,
        max_rows_per_page=1 << 20,
        write_statistics=False,
        store_schema=False,
    )


def make(source: Path, out: Path) -> int:
    """Makes the embedded data set: three Parquet files, two tokenizers, the card.

    Replaces files of an earlier run. Returns the size of all files in bytes.

    Raises:
        ValueError: if the files take more than `MAX_BYTES`.
    """
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split in CAPS:
        splits[split] = choose(read_source(source / f"{split}.parquet"), split)
        write_rows(splits[split], out / f"{split}.parquet")
    texts: dict[str, list[str]] = {lang: [] for lang in ("en", *LANGUAGES)}
    for row in splits["train"]:
        texts[row["lang"]] += [row["title"], row["text"]]
    english = train_english(texts["en"])
    multilingual = train_multilingual(texts)
    write_tokenizer(
        english,
        out / "english_tokenizer",
        {
            f"{role}_token": f"[{role.upper()}]"
            for role in ("pad", "unk", "cls", "sep", "mask")
        },
    )
    write_tokenizer(
        multilingual,
        out / "multilingual_tokenizer",
        SPECIAL_TOKENS["xlm-roberta"],
    )
    card = debian_card.render(splits, english, multilingual, MAX_CHARS, CAPS)
    (out / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(
            f"{out} takes {size:,} bytes, more than {MAX_BYTES:,}; lower CAPS or "
            "ENGLISH_ROWS, or remove files that this script did not write"
        )
    return size


def main() -> None:
    """Reads the flags and makes the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the full data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    print(f"{args.out}: {make(args.source, args.out):,} bytes")


if __name__ == "__main__":
    main()
