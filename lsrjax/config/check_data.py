"""Checks of `data` and `data.sets`: values that make no sense, and why."""

from lsrjax.config.schema import Dev, Rows
from lsrjax.data import sources
from lsrjax.data.batching import mixing
from lsrjax.data.batching.negatives import choice_of, sampler
from lsrjax.data.examples import ANY, ENGLISH
from lsrjax.data.reading import formats
from lsrjax.data.reading.formats import AUTO
from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.options import Chosen, check_no_effect, checked, kind_of, names


def _several(c) -> list:
    return list(mixing.named_sets(c.data).values())


def check_choice(c, where: str) -> None:
    """Checks that a query's documents and languages suit a stage's loss and data."""
    data = c.data
    loss = objective.of(c.loss)
    scores = not loss.targets.isdisjoint(("scores", "all_scores"))
    sizes = mixing.group_sizes(data)
    for size in sizes:
        if max(sizes) > 1 and data.positives > 1 and size <= data.positives:
            raise InputError(
                f"{where}.data.positives is {data.positives}, but data.group_size is"
                f" {size}: a group needs a negative, too. Raise group_size."
            )
    if len(set(sizes)) > 1 and data.batches_from != "one":
        raise InputError(
            f"{where}.data.sets have group sizes {', '.join(map(str, sizes))}, but"
            f" {where}.data.batches_from is {data.batches_from!r}: the queries of a"
            " batch have as many documents each. Set it to 'one', or give the sets one"
            " group_size."
        )
    if data.positives > 1 and not (scores or "positives" in loss.targets):
        raise InputError(
            f"{where}.data.positives is {data.positives}, but the loss {loss.name}"
            " takes the first document for the only positive. Set it to 1."
        )
    prepared = mines(c) or c.prepare.scores == "teacher"
    if data.positives > 1 and prepared:
        raise InputError(
            f"{where}.data.positives is {data.positives}, but what config.prepare makes"
            " has one positive for each query. Set it to 1."
        )
    chosen = sampler(data.negatives)
    if chosen.entry.ordered and mines(c):
        raise InputError(
            f"{where}.data.negatives is {chosen.name!r}, but mined negatives come in"
            " random order. Use 'random', and lower prepare.depth for harder ones."
        )
    if mines(c) and c.prepare.depth < c.prepare.count:
        raise InputError(
            f"{where}.prepare.count is {c.prepare.count}, more than the"
            f" {c.prepare.depth} documents (prepare.depth) that negatives are drawn"
            " from. Lower it, or raise prepare.depth."
        )
    if "languages" in loss.targets:
        _check_languages_compared(data, loss, where)
    if data.mixing == "round_robin" and not scores:
        raise InputError(
            f"{where}.data.mixing is 'round_robin', which repeats a query and its"
            f" teacher scores in every language, but the loss {loss.name} reads no"
            " scores. Use 'passages' or 'entries'."
        )


def _check_languages_compared(data, loss: objective.Objective, where: str) -> None:
    shown = f"{where}.loss has language_kl"
    if loss.targets.isdisjoint(("scores", "all_scores")):
        raise InputError(
            f"{shown}: language_kl alone is met by equal scores of all documents. Add"
            " it to a loss that reads the teacher's scores, as in {'kl': {},"
            " 'language_kl': {'weight': 0.5}}."
        )
    if data.mixing != "round_robin":
        raise InputError(
            f"{shown}, which compares a query's scores in several languages, but"
            f" {where}.data.mixing = {data.mixing!r} shows it in one. Set it to"
            " 'round_robin', or leave language_kl out."
        )


def check_round_robin(c, where: str) -> None:
    """Checks that every query can be shown in each language."""
    weights = c.data.document_languages
    if c.data.mixing != "round_robin":
        return
    shown = f"{where}.data.document_languages is {weights!r}"
    if ANY in weights or len(set(weights.values())) > 1 or len(weights) < 2:
        raise InputError(
            f"{shown}, but data.mixing = 'round_robin' shows every query in each"
            ' language: name at least two, all of one weight, as in {"en": 1, "de": 1}.'
        )
    if c.batch_size % len(weights):
        raise InputError(
            f"{shown}: {len(weights)} languages, but {where}.batch_size is"
            f" {c.batch_size}. data.mixing = 'round_robin' counts a query once for each"
            f" language: take a multiple of {len(weights)}."
        )


def check_rows(c, where: str) -> None:
    """Checks the data sets of a stage: their formats, and texts by id."""
    for at, own in mixing.named_sets(c.data, f"{where}.data").items():
        source, chosen = sources.chosen(own.source, at), formats.chosen(own.format, at)
        found = checked(Rows, own, at)
        loss = objective.of(c.loss)
        if len(c.data.sets) and "document" not in loss.texts:
            because = f"the loss {loss.name} has no queries and documents"
            check_no_effect(found, at, ["group_size"], because)
        _check_needs(source, f"{at}.source", "source")
        if not source.entry.rows:
            check_no_effect(found, at, ["format", "corpus"], _OWN_FORMAT)
            continue
        _check_format(chosen, c, own, at)
        check_english(own, c.prepare, at, reads_views(c))
        if not (mines(c) or chosen.name == AUTO or "corpus" in chosen.entry.needs):
            because = f"the format {chosen.name} holds texts, not ids, and no negatives"
            check_no_effect(found, at, ["corpus"], f"{because} are mined")
        if not reads_scores(c):
            because = "no scores are read from the data"
            check_no_effect(found, at, _score_options(chosen), because)
    _check_dev(c.dev, f"{where}.dev")


def _check_dev(dev, where: str) -> None:
    source, found = sources.chosen(dev.source, where), checked(Dev, dev, where)
    if dev.patience and not dev.every:
        check_no_effect(found, where, ["patience"], "dev.every is 0")
    if dev.task.name:
        own = ["source", "format", "queries"]
        check_no_effect(found, where, own, "dev.task is set")
        return
    if not source.name:
        return
    _check_needs(source, f"{where}.source", "source")
    chosen = formats.chosen(dev.format, where)
    because = "the teacher's scores of dev data are not read"
    check_no_effect(found, where, _score_options(chosen), because)
    if not source.entry.rows:
        check_no_effect(found, where, ["format"], _OWN_FORMAT)


def _check_needs(chosen: Chosen, where: str, what: str) -> None:
    """Refuses an entry without an option that it needs, such as a source's files."""
    for field in chosen.entry.needs:
        if not getattr(chosen.options, field, True):
            raise InputError(
                f"{where}.{field} is {getattr(chosen.options, field)!r}, but the {what}"
                f" {chosen.name} needs it: see docs/config.md."
            )


def _score_options(chosen: Chosen) -> list[str]:
    return [f"format.{name}" for name in chosen.entry.score_options]


_OWN_FORMAT = "the source has its own format"


def check_english(own, prepare, where: str, read: bool = False) -> None:
    """Refuses texts by id without English, in which `prepare` works.

    So does the loss's teacher where it is the one that `read`s them.
    """
    makes = not (prepare.negatives == "given" and prepare.scores == "given")
    if not (makes or read):
        return
    does = (
        "what config.prepare does is done in"
        if makes
        else "the loss's teacher reads texts in"
    )
    for field in ("corpus", "queries"):
        languages = set(sources.languages(own, field))
        if languages and not languages & {ANY, ENGLISH}:
            raise InputError(
                f"{where}: {field} is in {', '.join(sorted(languages))}, but"
                f" {does} English: add the language en."
            )


def _check_format(chosen: Chosen, c, own, at: str) -> None:
    """Refuses a format that lacks what a stage reads of a query's documents.

    If the columns determine the format, the first rows show what is missing.
    """
    if chosen.name == AUTO:
        return
    _check_needs(chosen, f"{at}.format", "format")
    if "corpus" in chosen.entry.needs and not own.corpus:
        raise InputError(
            f"{at}.corpus is {own.corpus!r}, but the format {chosen.name} needs it: see"
            " docs/config.md."
        )
    loss = objective.of(c.loss)
    ranks = "document" in loss.texts
    kind = "group" if ranks else "pair"
    if chosen.entry.kind != kind:
        raise InputError(
            f"{at}.format is {chosen.name!r}, but the loss {loss.name} reads"
            f" {formats.PLURALS[kind]}: {' or '.join(formats.of_kind(kind))}."
        )
    labels = ""
    if "grades" in names(kind_of(chosen.entry)):
        labels = f" If labels are the scores: {at}.format.grades = True."
    for what, asked, todo in (
        (
            "negatives",
            ranks and (own.group_size or c.data.group_size) > 1 and not mines(c),
            "Set config.prepare.negatives to 'bm25', or data.group_size to 1.",
        ),
        (
            "scores",
            ranks and reads_scores(c),
            "Set config.prepare.scores to 'teacher', or use a loss and negatives"
            " without scores." + labels,
        ),
        ("positives", c.data.positives > 1, "Set data.positives to 1."),
    ):
        if asked and what in chosen.entry.lacking(chosen.options):
            more = "a second positive" if what == "positives" else what
            raise InputError(
                f"{at}.format is {chosen.name!r}, whose rows lack {more}. {todo}"
            )


def has_languages(c, field: str = "corpus") -> bool:
    """Whether documents are in several languages, or queries (`field` "queries")."""
    return any(set(sources.languages(own, field)) - {ANY} for own in _several(c))


def may_name_languages(c) -> bool:
    """Whether rows may have a column with their language, or texts are by language."""
    for own in _several(c):
        source = sources.chosen(own.source)
        if source.entry.in_language(source.options):
            return True
        if source.entry.rows:
            entry = formats.chosen(own.format).entry
            named = entry.in_language or entry.kind == "pair"
            if named or entry is formats.FORMATS[AUTO]:
                return True
    return False


def check_languages(c, where: str) -> None:
    """Refuses weights of languages that no text is in."""
    dev = sources.chosen(c.dev.source).entry.languages
    for field, texts in (("query", "queries"), ("document", "corpus")):
        known = {
            language
            for own in _several(c)
            for language in sources.languages(own, texts)
        }
        known |= set(dev)
        at, weights = f"{where}.data.{field}_languages", c.data[f"{field}_languages"]
        unknown = set(weights) - known - {ANY}
        if known and ANY not in known and unknown:
            raise InputError(
                f"{at} names {', '.join(sorted(unknown))}, but the texts are in"
                f" {', '.join(sorted(known))}. Name only these, or add texts."
            )


def reads_scores(c) -> bool:
    """Whether a stage reads a teacher's scores from its data."""
    asked = "scores" in objective.of(c.loss).targets or (
        max(mixing.group_sizes(c.data)) > 1 and choice_of(c.data).needs_scores
    )
    return asked and c.prepare.scores == "given"


def reads_views(c) -> bool:
    """Whether a loss's teacher encodes queries and documents in English."""
    loss = objective.of(c.loss)
    return loss.kind == "group" and loss.reads_views


def mines(c) -> bool:
    """Whether a stage mines negatives."""
    return c.prepare.negatives != "given"
