"""Interprets the paths that a user gives, in the same way everywhere."""

import glob
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterator

from lsrjax.errors import InputError

# Files of data folders that are not data.
_ASIDE = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
# pathlib turns `gs://` into `gs:/`.
_ELSEWHERE = re.compile(
    r"[a-z][a-z0-9+.-]*://|(?:gs|s3|hf|az|hdfs|https?):/|file:", re.IGNORECASE
)
_BUCKET = re.compile(r"(gs|s3)://([^/]+)/*(.*?)/*")
_SPLITS = re.compile(
    r"(?:^|[/._-])(train|test|dev|validation|valid|val)(?:ing)?(?=[/._-])"
)


def local(path: str | os.PathLike, field: str) -> str:
    """A path on this machine; expands `~`, and removes `file://`.

    Raises:
      InputError: a remote path, such as `gs://…`, a `file:` URL of another machine or
        without a whole path, or an unknown user; names the field.
    """
    text = os.fspath(path)
    url = re.match(r"file:(?://([^/]*))?(?=/)", text, re.IGNORECASE)
    if url and (url[1] or "").lower() in ("", "localhost"):
        rest = text[url.end() :]
        return rest if os.path.exists(rest) else urllib.parse.unquote(rest)
    if _ELSEWHERE.match(text) and not os.path.exists(text):
        raise InputError(
            f"{field}: {text!r} is not on this machine, and only folders and files of"
            " its own file systems are read and written. Copy it here, or mount it"
            " and give the whole path. (Only a run's --workdir may be in a bucket:"
            " gs://BUCKET/PATH or s3://BUCKET/PATH.)"
        )
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded.startswith("~") and not os.path.exists(text):
            raise InputError(
                f"{field}: {text!r} is in the home folder of a user that this machine"
                " does not know. Give the path itself."
            )
        return expanded
    return text


def cache() -> pathlib.Path:
    """The folder of what can be made again: in XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "lsrjax"


def workdir(path: str | os.PathLike, field: str) -> str:
    """A work directory: a path on this machine, or gs://BUCKET/PATH or s3://BUCKET/PATH.

    Raises:
      InputError: another remote path, or a bucket without a path in it.
    """
    text = os.fspath(path)
    if not in_bucket(text):
        return local(text, field)
    if not parts_of(text)[2]:
        raise InputError(
            f"{field}: {text!r} is a whole bucket. Name a path in it, such as"
            f" {text.rstrip('/')}/runs/first."
        )
    return text


def in_bucket(path: str) -> bool:
    """Whether it is a place in object storage."""
    return bool(_BUCKET.fullmatch(path))


def parts_of(place: str) -> tuple[str, str, str]:
    """The scheme, bucket and path, without slashes around it, of one `in_bucket`."""
    match = _BUCKET.fullmatch(place)
    assert match is not None
    return match[1], match[2], match[3]


def files(
    pattern: str, field: str, known: Callable[[str], bool], whole: bool = False
) -> list[str]:
    """The files of a path or a glob pattern, sorted.

    A path that exists is taken literally. A folder stands for the files of known kinds
    in it and its subfolders (`en/…`, `lang=en/…`), of one split and one data set only.
    A pattern skips folders.

    Args:
      pattern: the path or pattern.
      field: of the config, for errors.
      known: whether a path is of a readable kind of file.
      whole: accept a folder with several splits and data sets.

    Raises:
      InputError: a pipe, a device, a link to nothing, or a folder with several splits
        or data sets.
    """
    path = local(pattern, field)
    if os.path.isdir(path):
        found = sorted(one for one in _walk(path) if known(one))
        if not whole:
            _check_one_set(path, found, field)
    elif os.path.lexists(path):
        found = [path]
    else:
        matched = sorted(glob.glob(_literal_start(path), recursive=True))
        found = [one for one in matched if not os.path.isdir(one)]
    for one in found:
        if not os.path.isfile(one):
            what = "a link to nothing" if os.path.islink(one) else "a pipe or device"
            raise InputError(
                f"{field}: {one} is {what}, not a file. Write the data to a file first,"
                " or leave it out of the pattern."
            )
    return found


def _literal_start(pattern: str) -> str:
    """Escapes the existing folders at the start of a pattern.

    `[set 1]/*.jsonl` is in the folder `[set 1]`, if it exists.
    """
    folders = pattern.split("/")
    for count in range(len(folders) - 1, 0, -1):
        start = "/".join(folders[:count])
        if start and os.path.isdir(start):
            return "/".join([glob.escape(start), *folders[count:]])
    return pattern


def _check_one_set(folder: str, found: list[str], field: str) -> None:
    names = [os.path.relpath(path, folder) for path in found]
    splits = {match for name in names for match in _SPLITS.findall(name)}
    # lang=de and the like are parts of one data set.
    places = {
        "/".join(part for part in name.split("/")[:-1] if "=" not in part)
        for name in names
    }
    for what, several in (("splits", splits), ("folders", places)):
        if len(several) > 1:
            shown = ", ".join(sorted(several)[:5])
            raise InputError(
                f"{field}: the folder {folder} has files of several {what} ({shown})."
                f" Name those to read, as in {os.path.join(folder, '*train*')!r}; a"
                " clone of a data set of the hub can also be read by source"
                " 'datasets', with its subset and split."
            )


def _walk(folder: str) -> Iterator[str]:
    for at, folders, names in os.walk(folder):
        # Not data: .git, .cache, _SUCCESS.
        folders[:] = sorted(f for f in folders if not f.startswith((".", "_")))
        for name in names:
            if not name.startswith((".", "_")) and name not in _ASIDE:
                yield os.path.join(at, name)
