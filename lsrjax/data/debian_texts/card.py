"""The data card of the embedded data set, with tables computed from the rows."""

from collections import Counter

import numpy as np
from tokenizers import Tokenizer

CARD = """\
# Debian package descriptions in {n_languages} languages

Parallel text for learned sparse retrieval across languages: short descriptions of the
software packages of Debian 12 and their volunteer translations (Debian Description
Translation Project). Real text, small enough to ship with the code, so that every
program can be run, tested and compared without a download.

Each row is the description of one package in one language. Rows with the same `id` are
translations of each other, and every `id` has an English row.

| column | meaning |
|---|---|
| `id` | 12 hexadecimal digits, the same for a description and its translations |
| `package` | Debian package name |
| `group` | packages whose descriptions share a sentence or a title |
| `lang` | ISO 639-1 code |
| `title` | one line, about 50 characters |
| `text` | one line, about 64 tokens at most |

## Rows

{rows_table}

- No group, and so no id, is in two splits.
- **test** has every English description of the full set's test split
  ({n_test_english} documents). Of each other language it has up to {cap_test} rows,
  drawn by a hash of the id.
- **dev** has up to {cap_dev} rows of each other language, their English rows, and
  English rows up to {dev_english} in all.
- **train** has up to {cap_train} rows of each other language (of rarer languages,
  all), their English rows, and English rows up to {train_english} in all, from as many
  groups as possible. Train and dev take the ids that exist in most languages first, so
  that one document can be shown in several languages.
- Finnish, Dutch and Swedish are left out: fewer than 50 test rows each.

## Use

- Alignment pairs: (English title or text, the same in another language), joined on
  `id`.
- Cross-lingual retrieval: query = `title` in language X, corpus = English `text`
  (without the title, which is the English query itself). The document with the
  query's id is the relevant one; equal texts are one document.
- Retrieval from a multilingual corpus: each document in one language.
- Translate-train data: one document in several languages, with one teacher score.

`lsrjax.data.debian_texts.embedded.load("test")` gives the rows, and lookups by
language and id.

## How texts were cut

Whitespace and line breaks became single spaces; a row with an empty title or text is
dropped (none was). Titles are whole. A text longer than its language's limit was cut at
the end of a sentence if there is one in the second half, otherwise at the end of a
word, or of a character in scripts without spaces. Its last paragraph was kept if it
takes half of the limit or less: packages of one source share their first paragraphs and
differ in the last one. So a text can jump from a cut sentence to its last paragraph.

Limits in characters: {limits}.

## Tokenizers

Both were trained once, on the train split above.

- `english_tokenizer/`: WordPiece in BERT's form, {english_size} pieces, lower case,
  accents stripped; `[PAD]` 0, `[UNK]` 1, `[CLS]` 2, `[SEP]` 3, `[MASK]` 4;
  `[CLS] x [SEP]`.
- `multilingual_tokenizer/`: Unigram in XLM-R's form (Metaspace), {multilingual_size}
  pieces; `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` {mask_id}; `<s> x </s>`.
  Its normaliser is NFKC **and lower case**, unlike XLM-R's: with a small model, this
  loses fewer matches of terms between texts, as in a source view. Rarer languages were
  repeated in training until all but English had about equal shares.

Tokens of the dev texts, special tokens included; characters per token without them:

{token_table}

## Known biases

- Titles and texts contain names that are the same in every language (SVG, GNU R, LaTeX,
  package names), so BM25 is a strong baseline even across languages. Compare with it.
- One register only: short, technical, formulaic ("This package contains ..."). Results
  say little about questions or long documents.
- {n_repeated} of the {n_test_english} English test texts are shared by two or more
  descriptions ({n_repeated_both} if the title counts too). Evaluation counts
  equal texts as one document.
- Each query has one relevant document by construction; packages of the same source may
  also be relevant and count as wrong.
- Languages differ in volunteers, hence in topics and covered packages. Results of
  different languages are not comparable.
- Translations are by volunteers, reviewed but not always up to date or complete.

## Licence

Each description and translation is under the licence of its package's Debian packaging,
all of them DFSG-free. They are in the files `debian/control` and `debian/copyright` of
the package named in the column `package`.

## Rebuild

    python -m lsrjax.data.debian_texts.make --source DIR --out lsrjax/data/debian_texts

`DIR` contains the full set (about 207,000 rows, not shipped) as `train.parquet`,
`dev.parquet` and `test.parquet` with the columns above. Two runs of the same library
versions write identical files.
"""

Rows = list[dict[str, str]]


def render(
    splits: dict[str, Rows],
    english: Tokenizer,
    multilingual: Tokenizer,
    max_chars: dict[str, int],
    caps: dict[str, int],
) -> str:
    """Fills the card; `max_chars` limits texts by language, `caps` rows by split."""
    counts = {
        split: Counter(row["lang"] for row in rows) for split, rows in splits.items()
    }
    languages = ["en", *sorted(set(max_chars) - {"en"})]
    test = [row for row in splits["test"] if row["lang"] == "en"]
    return CARD.format(
        n_languages=len(languages),
        rows_table=_rows_table(counts, languages),
        n_test_english=f"{counts['test']['en']:,}",
        n_repeated=f"{_repeated([row['text'] for row in test]):,}",
        n_repeated_both=_repeated([row["title"] + "\n" + row["text"] for row in test]),
        cap_test=f"{caps['test']:,}",
        cap_dev=f"{caps['dev']:,}",
        cap_train=f"{caps['train']:,}",
        dev_english=f"{counts['dev']['en']:,}",
        train_english=f"{counts['train']['en']:,}",
        limits=", ".join(f"{lang} {max_chars[lang]}" for lang in languages),
        english_size=f"{english.get_vocab_size():,}",
        multilingual_size=f"{multilingual.get_vocab_size():,}",
        mask_id=multilingual.token_to_id("<mask>"),
        token_table=_token_table(splits["dev"], languages, english, multilingual),
    )


def _repeated(texts: list[str]) -> int:
    return sum(n for n in Counter(texts).values() if n > 1)


def _rows_table(counts: dict[str, Counter[str]], languages: list[str]) -> str:
    lines = ["| lang | " + " | ".join(counts) + " |", "|---" * (1 + len(counts)) + "|"]
    for lang in languages:
        cells = " | ".join(f"{count[lang]:,}" for count in counts.values())
        lines.append(f"| {lang} | {cells} |")
    totals = " | ".join(f"{count.total():,}" for count in counts.values())
    return "\n".join([*lines, f"| all | {totals} |"])


def _token_table(
    rows: Rows, languages: list[str], english: Tokenizer, multilingual: Tokenizer
) -> str:
    lines = [
        "| lang | tokenizer | mean tokens | 95th percentile | within 64 "
        "| characters per token | unknown tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for lang in languages:
        texts = [row["text"] for row in rows if row["lang"] == lang]
        if not texts:
            continue
        for name, tokenizer, unk in (
            ("english", english, "[UNK]"),
            ("multilingual", multilingual, "<unk>"),
        ):
            if name == "english" and lang != "en":
                continue
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            lengths = np.array([len(line) for line in ids])
            inner = lengths.sum() - 2 * len(lengths)
            unknown_id = tokenizer.token_to_id(unk)
            unknown = sum(one == unknown_id for line in ids for one in line)
            lines.append(
                f"| {lang} | {name} | {lengths.mean():.1f} "
                f"| {np.percentile(lengths, 95):.0f} | {(lengths <= 64).mean():.1%} "
                f"| {sum(map(len, texts)) / inner:.2f} | {unknown / inner:.2%} |"
            )
    return "\n".join(lines)
