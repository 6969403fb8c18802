"""What `lsrjax encode` does with its flags: models, texts and folders to vectors."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from lsrjax import paths
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import open_portable
from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.retrieval import encode_corpus, prefixes, terms
from lsrjax.retrieval.encode_corpus import Encoding, Work, work_of
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.part_files import PartFolder
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.several_views import SEVERAL
from lsrjax.retrieval.vector_formats.table import FORMATS, Format, format_of
from lsrjax.retrieval.vector_formats.vectors import SPARSE, About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

PART_ROWS = 32_768


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; the flags of the command.

    Attributes:
      model: a run's folder stands for its last stage.
      texts: a .txt file, or what `data.corpus` accepts.
      out: a file with the ending of its format, or a folder.
      role: "query" or "document".
      max_length: tokens kept of a text; 0: as in training, else 64 of a query and 256
        of a document, or the tokenizer's limit if lower.
      batch_size: texts that a device encodes at once.
      dtype: of matrix products, "float32" or "bfloat16".
      format: a name in `FORMATS`; empty: by the ending of `out`.
      prune: the budget of terms of a text, as of `Pruning.parse`; empty: all.
      quantize: weights of terms are multiplied by it and rounded; 0: floats; None: as
        the format needs it.
      part_rows: texts of a part of a folder.
      embedding_size: the first numbers kept of an embedding; 0: all.
      language: of the texts, for an encoder that computes by it; `STATED`: of each
        text, as `texts` states it; empty: its own default.
      for_index: refuses the kind of the vectors before they are made for an index;
        None: the vectors are what was wanted.
    """

    model: str
    texts: str
    out: str
    role: str = "document"
    max_length: int = 0
    batch_size: int = 64
    dtype: str = "float32"
    format: str = ""
    prune: str = ""
    quantize: float | None = None
    part_rows: int = PART_ROWS
    embedding_size: int = 0
    language: str = ""
    for_index: Callable[[str], object] | None = None

    @property
    def path(self) -> pathlib.Path:
        """Where the vectors go, on this machine."""
        return pathlib.Path(paths.local(self.out, "--out"))


def encode(request: Request, process: tuple[int, int] = (0, 1)) -> None:
    """Encodes texts into a file of vectors, or this process's parts of a folder.

    Args:
      process: this process's number, and how many share the folder.

    Raises:
      InputError: a model, file or option that cannot be used.
    """
    out = request.path
    if out.suffix and process[1] > 1:
        raise InputError(
            f"--out {out} is one file, and there are {process[1]} processes. Name a"
            " folder (without an ending), to which each writes its parts."
        )
    with local_mesh():
        job = Job(request)
        job.write_folder(*process) if not out.suffix else job.write_file()


def _length(model: SavedModel, role: str, max_length: int) -> int:
    limit = model.spec.encoder.max_length
    trained = model.query_length if role == "query" else model.document_length
    length = max_length or trained
    if not 2 < length <= limit:
        raise InputError(f"--max_length is {length}; the model takes 3 to {limit}.")
    return length


def local_mesh() -> contextlib.AbstractContextManager:
    """A context in which texts are divided over this process's devices."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return contextlib.nullcontext()
    return jax.set_mesh(sharding.make_mesh(-1, 1, devices))


def encoding_of(
    model: SavedModel,
    options: Mapping[str, Any],
    batch_size: int,
    stated: bool = False,
) -> Encoding:
    """How the model makes vectors of texts, in the mesh that is set."""
    mesh = jax.sharding.get_mesh()
    placed = None if mesh.empty else sharding.replicated(mesh)
    return Encoding(
        TextEncoder(
            model.spec,
            TextTokenizer(model.tokenizer),
            batch_size=batch_size,
            dtype=options["dtype"],
            each_device=True,
        ),
        jax.device_put(model.params, placed),
        options["role"],
        options["max_length"],
        encode_corpus.WINDOW_BATCHES * batch_size,
        Pruning.parse(options["prune"]) if options["prune"] else None,
        options["quantize"],
        stated,
    )


def abouts_of(
    model: SavedModel, encoding: Encoding, made_of: dict[str, Any]
) -> dict[str, About]:
    """What each file of a text's vectors holds."""
    spec = model.spec
    folder = model.pivot_tokenizer
    pivot = TextTokenizer(folder) if folder else None
    tokenizer = encoding.encoder.tokenizer
    found = {}
    for name, (kind, views) in encoding.files.items():
        sparse = kind == SPARSE
        names = terms.names_of(spec, tokenizer, pivot, views) if sparse else None
        columns = sum(spec.views[view] for view in views)
        found[name] = About(kind, columns, names, made_of)
    return found


def check_kinds(
    name: str, form: Format, abouts: Mapping[str, About], options: Mapping[str, Any]
) -> None:
    """Refuses formats and options that do not go with a model's vectors."""
    kinds = {about.kind for about in abouts.values()}
    if wrong := sorted(kinds - set(form.kinds)):
        able = [key for key, one in FORMATS.items() if kinds <= set(one.kinds)]
        raise InputError(
            f"--format {name} cannot hold this model's vectors ({', '.join(wrong)})."
            f" Possible are {', '.join(able)}."
        )
    for flag in ("prune", "quantize"):
        if options[flag] and SPARSE not in kinds:
            raise InputError(
                f"--{flag} is for weights of terms, and the model gives"
                f" {', '.join(sorted(kinds))} vectors. Leave it out."
            )
    whole = bool(form.quantize)
    if not 0 <= options["quantize"] <= 2**20 or (whole and not options["quantize"]):
        raise InputError(
            f"--quantize is {options['quantize']:g}; give a factor such as 100"
            + (", since Anserini reads whole numbers." * whole or ".")
        )


class Job:
    """The work of a request, in the mesh that is set."""

    def __init__(self, request: Request):
        """Opens the model and the texts; errors as of `encode`."""
        self.request, self.out = request, request.path
        name, self.form = format_of(request.format, self.out)
        for flag in ("batch_size", "part_rows"):
            if (value := getattr(request, flag)) < 1:
                raise InputError(f"--{flag} is {value}; it has to be at least 1.")
        model = open_portable(request.model)
        if request.language:
            model = model.in_language(request.language)
        if request.embedding_size:
            model = prefixes.shortened(
                model, request.embedding_size, "--embedding_size"
            )
        length = _length(model, request.role, request.max_length)
        options = {
            "role": request.role,
            "max_length": length,
            "dtype": request.dtype,
            "prune": str(Pruning.parse(request.prune)) if request.prune else "",
            "quantize": (
                self.form.quantize if request.quantize is None else request.quantize
            ),
        }
        self.made_of = {"model": model.name, "weights": model.digest(), **options}
        self.made_of["format"] = name
        if request.language:
            self.made_of["language"] = request.language
        if request.embedding_size:
            self.made_of["embedding_size"] = request.embedding_size
        if not self.out.suffix:
            self.made_of["part_rows"] = request.part_rows
        stated = request.language == STATED
        self.encoding = encoding_of(model, options, request.batch_size, stated)
        self.texts = NumberedTexts(request.texts, "--texts", request.role)
        if stated:
            self.encoding.encoder.numbers(self.texts.languages, request.role)
        self.made_of["texts"] = self.texts.facts
        self.abouts = abouts_of(model, self.encoding, self.made_of)
        check_kinds(name, self.form, self.abouts, options)
        if request.for_index:
            kinds = [about.kind for about in self.abouts.values()]
            request.for_index(kinds[0] if len(kinds) == 1 else SEVERAL)

    def write_file(self) -> None:
        """Writes all vectors to one file."""
        out = self.out
        if "" not in self.abouts:
            raise InputError(
                f"The model gives {', '.join(self.abouts)}, which no single file holds."
                f" Name a folder, such as --out {out.with_suffix('')}."
            )
        whole = bool(self.encoding.quantize)
        target = Target.of(out, self.form, self.abouts[""], whole)
        partial = out.with_name(f"{out.name}.partial")
        files = VectorFiles(partial, {"": target}, self.made_of)
        if files.rows:
            print(f"{files.rows:,} texts are encoded already.", flush=True)
        with contextlib.closing(files):
            end = len(self.texts)
            work = work_of(files, 0, end, self._step, lambda: None)
            encode_corpus.encode_parts(self.encoding, self.texts, work)
        print(f"{files.rows:,} texts encoded in {out}", flush=True)
        self._say_next()

    def write_folder(self, number: int, count: int) -> None:
        """Writes the parts of process `number`; the manifest, if they were the last."""
        own = range(number, self.folder.count, count)
        missing = self.missing(own)
        self.make(missing)
        self.complete(len(own))

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """The parts among these that are to be made; says how many are there."""
        missing = self.folder.check(numbers)
        if len(missing) < len(numbers):
            there = len(numbers) - len(missing)
            print(f"{there:,} of {len(numbers):,} parts are there already.", flush=True)
        return missing

    def make(self, numbers: Sequence[int]) -> None:
        """Encodes some parts."""
        with contextlib.ExitStack() as stack:
            work = self._work(numbers, stack)
            encode_corpus.encode_parts(self.encoding, self.texts, work)

    def complete(self, own: int) -> None:
        """Writes the manifest if all parts are there; `own`: those made here."""
        if self.folder.complete():
            print(f"{len(self.texts):,} texts encoded in {self.out}", flush=True)
            self._say_next()
            return
        print(
            f"{own:,} parts in {self.out}; those of other processes are not there yet.",
            flush=True,
        )

    def _say_next(self) -> None:
        """Says how documents in a format that `lsrjax index` reads are searched."""
        asked = self.request
        readable = asked.role == "document" and "lsrjax" in self.form.reads
        if asked.for_index or not readable:
            return
        vectors, texts, model = (
            shlex.quote(one) for one in (asked.out, asked.texts, asked.model)
        )
        index = shlex.quote(f"{asked.path.with_suffix('').name}.index")
        print(
            "What to do next:\n"
            f"  lsrjax index --vectors {vectors} --texts {texts} --out {index}\n"
            f"  lsrjax serve --index {index} --model {model}",
            flush=True,
        )

    @functools.cached_property
    def folder(self) -> PartFolder:
        """The folder of parts."""
        whole = bool(self.encoding.quantize)
        total, rows = len(self.texts), self.request.part_rows
        return PartFolder(
            self.out, self.form, self.abouts, total, rows, self.made_of, whole
        )

    @property
    def _step(self) -> int:
        """Texts that are encoded in one go: a window for each device."""
        return self.encoding.window * sharding.axis_size(sharding.DATA)

    def _work(
        self, numbers: Sequence[int], stack: contextlib.ExitStack
    ) -> Iterator[Work]:
        for number in numbers:
            files = stack.enter_context(contextlib.closing(self.folder.open(number)))
            first, end = self.folder.range(number)
            done = functools.partial(self.folder.record, number)
            yield from work_of(files, first, end, self._step, done)
