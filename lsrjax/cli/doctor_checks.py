"""The doctor's checks; each returns or yields findings."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import huggingface_hub
import jax
import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from jax.sharding import NamedSharding, PartitionSpec

from lsrjax import errors, paths
from lsrjax.config import check_run, secrets
from lsrjax.config import fields as config
from lsrjax.convert import references
from lsrjax.convert.read.hub import is_local, pinned
from lsrjax.data import sources
from lsrjax.data.batching import languages, mixing
from lsrjax.distributed import library_log, processes
from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.training import (
    bucket,
    dev_data,
    early_checks,
    memory_plan,
    stage_data,
    work_folder,
)
from lsrjax.training.batch_contents import Contents
from lsrjax.training.early_checks import KEY_FILES, LOOK_SECONDS

OK, WARNING, ERROR = "ok", "warning", "error"
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers"),
    *("tokenizers", "huggingface_hub", "grain", "numpy"),
)
_HUB_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the report: `OK`, `WARNING` or `ERROR`, a topic, and what to do."""

    level: str
    topic: str
    text: str


def versions() -> Finding:
    """Versions of Python and of the libraries that training uses."""
    found = [f"python {platform.python_version()}"]
    missing = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        text = f"not installed: {', '.join(missing)}. pip install -e . brings them."
        return Finding(ERROR, "versions", text)
    return Finding(OK, "versions", ", ".join(found))


def proxies(host: str, processes: int, environ: Mapping[str, str]) -> Finding:
    """Proxy variables, which JAX's connections (gRPC) obey even within a cluster.

    `host` is that of process 0, empty if unknown.
    """
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    found = [name for name in names if environ.get(name)]
    excepted = environ.get("no_grpc_proxy") or environ.get("no_proxy", "")
    parts = [part.strip() for part in excepted.split(",") if part.strip()]
    if not found or processes == 1:
        return Finding(OK, "proxies", "none in the way of the processes")
    if host and any(host.endswith(part) for part in parts):
        return Finding(OK, "proxies", f"no_proxy lets {host} be reached directly")
    wanted = host or "the host of process 0"
    return Finding(
        ERROR,
        "proxies",
        f"{' and '.join(found)} would lead the connections to process 0 through a proxy"
        f" and break them. export no_proxy={','.join([*parts, wanted])!r}, or unset"
        f" {' '.join(found)}.",
    )


def tokens(run_config: Mapping | None, path: pathlib.Path | None) -> list[Finding]:
    """Secrets in a config or its file, since configs are stored and published."""
    places = []
    if run_config is not None:
        places += secrets.in_config(run_config)
    if path is not None and path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        places += [
            (f"{path}:{number}", kind)
            for number, line in enumerate(lines, start=1)
            for kind in secrets.kinds_in(line)
        ]
    found = [Finding(ERROR, "tokens", secrets.message(*place)) for place in places]
    return found or [Finding(OK, "tokens", "none in the config")]


def devices() -> Finding:
    """The devices of this process and of all processes."""
    here = jax.local_devices()
    memory = (here[0].memory_stats() or {}).get("bytes_limit", 0)
    return Finding(
        OK,
        "devices",
        f"{jax.process_count()} process{'es' * (jax.process_count() > 1)},"
        f" {jax.device_count()} x {here[0].device_kind} ({here[0].platform})"
        + (f" of {memory_plan.size(memory)}" if memory else "")
        + f", {len(here)} in a process",
    )


def interconnect() -> Finding:
    """Times a sum over all devices of all processes, and checks its result."""
    every = jax.devices()
    if len(every) == 1:
        return Finding(OK, "interconnect", "one device, nothing to connect")
    width = 2**18 if every[0].platform == "cpu" else 2**24
    mesh = jax.sharding.Mesh(np.array(every), ("all",))
    columns = (np.arange(width) % 7 + 1).astype(np.float32)
    # Integers below 2^24 are exact in float32.
    parts = np.arange(len(every)) % 97 + 1
    rows_DV = jax.make_array_from_callback(
        (len(every), width),
        NamedSharding(mesh, PartitionSpec("all")),
        lambda index: np.outer(parts, columns)[index],
    )
    reduce = jax.jit(
        lambda rows_DV: rows_DV.sum(axis=0),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    seconds = []
    for _ in range(6):  # the first one compiles
        start = time.perf_counter()
        total_V = jax.block_until_ready(reduce(rows_DV))
        seconds.append(time.perf_counter() - start)
    text = f"{4 * width / 2**20:.0f} MiB all-reduced over {len(every)} devices"
    for shard in total_V.addressable_shards:
        if not np.array_equal(shard.data, columns * parts.sum()):
            return Finding(
                ERROR,
                "interconnect",
                f"{text}: the sum is wrong on {shard.device}. The device, its driver or"
                " the network is broken: leave this node out, or update the driver and"
                " NCCL.",
            )
    taken = statistics.median(seconds[1:])
    return Finding(OK, "interconnect", f"{text} in {1000 * taken:.3g} ms, rightly")


def config_values(run_config) -> list[Finding]:
    """Validates the config."""
    try:
        check_run.validate(run_config)
    except InputError as error:
        return [Finding(ERROR, "config", message) for message in error.args]
    names = ", ".join(config.stages(run_config))
    return [Finding(OK, "config", f"can be run; stages: {names}")]


def data(run_config) -> Iterator[Finding]:
    """Opens every stage's data and checks its records."""
    for name, stage in config.stages(run_config).items():
        kind = objective.of(stage.loss).kind
        try:
            yield _data_of(name, stage, kind)
        # The libraries behind the sources raise many unrelated types of error.
        except Exception as error:
            yield Finding(ERROR, "data", f"stage {name}: {_said(error)}")


def tasks(run_config) -> Iterator[Finding]:
    """Reads the benchmarks of the stages and of the finished run."""
    stages, each = config.stages(run_config), errors.Each()
    try:
        for text in early_checks.look_at_tasks(run_config, stages, each):
            yield Finding(OK, "tasks", text)
        for message in each.messages:
            yield Finding(ERROR, "tasks", message)
    # The libraries behind some benchmarks raise errors of their own.
    except Exception as error:
        yield Finding(ERROR, "tasks", _said(error))


def _data_of(name: str, stage, kind: str) -> Finding:
    with stage_data.tried(stage, kind, LOOK_SECONDS) as (sets, seen, bad):
        replaced = bad.summary().partition(";")[0]
        first = bad.reasons(1)
        count = sum(len(one) for one in sets)
        # Of more, reading all would take long.
        spoken = _by_language(stage, sets) if seen == count else ""
    text = f"stage {name}: {count:,} examples{spoken}"
    text += f" (the first {seen:,} looked at)" if seen < count else ""
    if stage.dev.source.name:
        text += f", {dev_data.dev_examples(stage, kind):,} to evaluate on"
    if not replaced:
        return Finding(OK, "data", text)
    text += f"; {replaced}, as config.data.bad_records allows: {first[0]}"
    return Finding(WARNING, "data", text)


def _by_language(stage, sets: Sequence) -> str:
    """The examples of each language, if these are told apart.

    Raises:
      InputError: batches cannot be made of them as the config asks.
    """
    scheduled = languages.scheduled(stage.data, sets)
    if not scheduled and not any(languages.named_by(one) for one in sets):
        return ""
    sizes = [len(one) for one in sets]
    parts = languages.parts_of(mixing.Concatenated(sets), sizes)
    if scheduled:
        others = sources.chosen(stage.dev.source).entry.languages
        entries = Contents.of(stage).entries
        languages.order_of(stage.data, parts, entries, stage.seed, others)
    counts = collections.Counter[str]()
    for part in itertools.chain(*parts):
        counts[part.language] += len(part.numbers)
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    return f" ({shown})"


def _said(error: Exception) -> str:
    known = isinstance(error, InputError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def disk(run_config, workdir: pathlib.Path) -> Iterator[Finding]:
    """Compares the free space of the work directory with the size of checkpoints.

    A model that cannot be opened, which leaves that size unknown, or that does not fit
    its stage, is a finding, too.
    """
    folder = next(p for p in (workdir, *workdir.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    at = f"{memory_plan.size(free)} are free at {folder}"
    if run_config is None:
        yield Finding(OK, "disk", at)
        return
    try:
        plans = memory_plan.plan_stages(run_config)
        # The last ones, the best, and the one being written.
        needs = {
            name: one.checkpoint_bytes * (one.config.checkpoint.keep + 2)
            for name, one in plans.items()
        }
    except InputError as error:
        yield Finding(ERROR, "models", str(error))
        yield Finding(OK, "disk", at)
        return
    except Exception as error:
        text = f"{at}; what checkpoints take is unknown: {_said(error)}"
        yield Finding(WARNING, "disk", text)
        return
    each = errors.Each()
    early_checks.check_models(plans, config.stages(run_config), each)
    for message in each.messages:
        yield Finding(ERROR, "models", message)
    there = sum(
        min(needs[name], _bytes(workdir / name / "checkpoints")) for name in needs
    )
    need = sum(needs.values()) - there
    text = f"{at}; the checkpoints to come take up to {memory_plan.size(need)}"
    if free >= 1.2 * need:
        yield Finding(OK, "disk", text)
        return
    level = ERROR if free < need else WARNING
    yield Finding(
        level,
        "disk",
        f"{text}. Free some, take a --workdir on another disk, or lower"
        " config.checkpoint.keep.",
    )


def _bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hub_ids(run_config) -> dict[tuple[str, str], str]:
    """The hub ids that a config names: (kind, id) to the first field."""
    found: dict[tuple[str, str], str] = {}
    for name, stage in config.stages(run_config).items():
        for field, value in references.of_stage(stage).items():
            own = value.startswith(("stage:", "embedded:"))
            if not own and not is_local(value):
                found.setdefault(("model", value), f"{name}: {field}")
        sets = mixing.named_sets(stage.data, "data")
        sets |= {"dev": stage.dev} if stage.dev.source.name else {}
        for field, one in sets.items():
            source = sources.chosen(one.source, f"config.{field}")
            for value in source.entry.hub_names(source.options):
                at = f"{field}.source.dataset"
                if not pathlib.Path(paths.local(value, at)).is_dir():
                    found.setdefault(("dataset", value), f"{name}: {at}")
    return found


def hub(run_config) -> Iterator[Finding]:
    """Checks that the hub's models and data sets can be fetched or are cached."""
    offline = constants.HF_HUB_OFFLINE
    for (kind, name), field in hub_ids(run_config).items():
        cache = pathlib.Path(constants.HF_HUB_CACHE)
        folder = f"{kind}s--{pinned(name)[0].replace('/', '--')}"
        cached = any((cache / folder / "snapshots").glob("*/*"))
        what = f"{kind} {name!r} ({field})"
        if offline:
            text = f"{what}: HF_HUB_OFFLINE is set, and it "
            if cached:
                yield Finding(OK, "hub", text + "is in the cache")
            else:
                text += f"is not in {cache}. Fetch it first: hf download {name}"
                text += " --repo-type dataset" * (kind == "dataset")
                yield Finding(ERROR, "hub", f"{text}, without HF_HUB_OFFLINE.")
            continue
        try:
            _ask(kind, name)
            yield Finding(OK, "hub", f"{what} may be read")
        # Which errors the hub's client raises differs between releases.
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            text = f"{what}: {type(error).__name__}: {said}"
            if cached:
                yield Finding(WARNING, "hub", f"{text}. It is in the cache.")
                continue
            yield Finding(
                ERROR,
                "hub",
                f"{text}. Check the id, the network and `hf auth login`, or name a"
                " local folder.",
            )


def _ask(kind: str, name: str) -> None:
    """Asks the hub for the size of one file, or for a data set's description."""
    if kind == "dataset":
        huggingface_hub.HfApi().dataset_info(name, timeout=_HUB_SECONDS)
        return
    repo_id, revision = pinned(name)
    for file in KEY_FILES:
        url = huggingface_hub.hf_hub_url(repo_id, file, revision=revision)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
            return
        except EntryNotFoundError as error:
            missing = error
    raise missing


def in_bucket(place: str) -> Finding:
    """Whether a run could use a work directory in object storage."""
    if processes.count() > 1:
        message = str(work_folder.shared_by_all(place))
        return Finding(ERROR, "workdir", message)
    try:
        # AWS's library names files of credentials that need not be there.
        with library_log.shown_if_it_fails():
            bucket.probe(place)
    except InputError as error:
        return Finding(ERROR, "workdir", str(error))
    return Finding(OK, "workdir", f"{place} can be written")


@dataclasses.dataclass
class Marker:
    """A file in the work directory that the other processes look for."""

    workdir: pathlib.Path
    _made: list[pathlib.Path] = dataclasses.field(default_factory=list)

    @property
    def _path(self) -> pathlib.Path:
        return self.workdir / ".doctor"

    def write(self) -> Finding:
        """Writes the file, in process 0."""
        absolute = self.workdir.absolute()
        self._made = [p for p in (absolute, *absolute.parents) if not p.exists()]
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._path.write_text(str(os.getpid()))
        except OSError as error:
            return Finding(
                ERROR,
                "workdir",
                f"{absolute} cannot be written ({error.strerror}). Give another"
                " --workdir.",
            )
        return Finding(OK, "workdir", f"{absolute} can be written")

    def look(self, seconds: float) -> Finding:
        """Waits for the file, in another process; network file systems lag."""
        deadline = time.monotonic() + seconds
        while not self._path.exists():
            if time.monotonic() > deadline:
                return Finding(
                    ERROR,
                    "workdir",
                    f"{self.workdir.absolute()} does not show here what process 0 has"
                    " written there. Give a --workdir on a file system that all nodes"
                    " share.",
                )
            time.sleep(0.1)
        return Finding(OK, "workdir", "shared")

    def remove(self) -> None:
        """Removes the file, and the folders that were created for it."""
        # A folder that is not writable is no new finding.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            for folder in self._made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
