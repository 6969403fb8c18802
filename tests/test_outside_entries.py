"""Entries of the user's, each with an option of its own, from outside the package."""

import json
import sys

import numpy as np
import pytest
from rich.console import Console

from lsrjax import lookup
from lsrjax.checkpoint import saved_model
from lsrjax.config import fields
from lsrjax.config.check_run import validate
from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry
from lsrjax.data.batching import mixing, negatives
from lsrjax.data.reading import unchanged_files
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.training import run

MINE = '''
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.initial.start import Initialisation
from lsrjax.losses.loss import Loss, LossOptions
from lsrjax.losses.regularizers import OfTexts, Regularizer
from lsrjax.models.layers import Head
from lsrjax.models.views import Vector, score_all
from lsrjax.options import Options, option


class FirstToken(Head):
    """Weights of a few terms of one's own, from the first token's state."""

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        terms: int = option(7, "that there are", above=1)

    rules = (Rule("head/kernel", (None, None)),)

    @staticmethod
    def views(spec):
        return {"own": spec.options.terms}

    def __init__(self, spec, *, dtype, rngs):
        shape = (spec.encoder.hidden_size, spec.options.terms)
        self.kernel = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), shape))

    def __call__(self, hidden_TD, texts, word_embeddings_VD):
        first_BD = texts.together(part[:, 0] for part in texts.split(hidden_TD))
        raw_BV = first_BD @ self.kernel[...]
        return {"own": Vector(jax.nn.relu(raw_BV), raw_BV)}


@dataclasses.dataclass(frozen=True)
class HingeOptions(LossOptions):
    margin: float = option(1.0, "by which a query's document is ahead", above=0)


def _hinge(views, targets, options):
    scores = score_all(views["query"], views["document"])
    own = jnp.diagonal(scores)[:, None]
    return {"hinge": jnp.maximum(0, options.margin - own + scores).mean()}


hinge = Loss(_hinge, ("query", "document"), Options=HingeOptions)


@dataclasses.dataclass(frozen=True)
class PowerOptions(OfTexts):
    power: float = option(2.0, "of the mean weights", above=0)


def _power(view, power):
    return (view.column_means() ** power).sum()


power = Regularizer(_power, Options=PowerOptions)


class Louder(Initialisation):
    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        factor: float = option(2.0, "of the head's weights", above=0)

    @staticmethod
    def weights(params, options, model, start):
        kernel = options.factor * params["head"]["kernel"]
        return params | {"head": {"kernel": kernel}}
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def config_of():
    c = get_default()
    c.model.head = entry("of_mine.FirstToken", terms=11)
    c.loss = {"of_mine.hinge": {"margin": 3.0, "weight": 0.5}}
    c.regularizer = entry("of_mine.power", document=0.1, power=3.0)
    c.init = {"of_mine.Louder": {"factor": 5.0}}
    c.tokenizer = "embedded:english"
    c.model.hidden_size, c.model.num_heads, c.model.num_layers = 16, 2, 1
    c.data.source, c.data.source.split = "debian", "dev"
    c.data.query_length, c.data.document_length = 8, 12
    c.batch_size, c.steps, c.log.every = 4, 2, 1
    return c


def test_entries_from_outside_train_with_their_options(tmp_path, mine):
    run.run(config_of(), tmp_path / "run", Console(quiet=True))
    model = saved_model.load_model(tmp_path / "run" / "train")
    assert model.spec.options.terms == 11 and model.spec.views == {"own": 11}
    assert model.params["head"]["kernel"].shape == (16, 11)
    lines = (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["step"] for one in found if "loss" in one] == [1, 2]
    assert found[0]["hinge"] > 0 and found[0]["of_mine.power_document_own"] > 0


def test_an_initialisation_from_outside_changes_the_first_weights(mine):
    config, without = config_of(), config_of()
    without.init = {}
    loud, quiet = (
        build_student.student(c, None).params([])["head"]["kernel"]
        for c in (config, without)
    )
    np.testing.assert_allclose(loud, 5 * quiet, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.head.trems": 3},
            "config.model.head.trems is no option of 'of_mine.FirstToken'; the nearest"
            " is config.model.head.terms",
        ),
        ({"model.head.terms": 1}, "config.model.head.terms is 1; it must be > 1"),
        (
            {"loss": {"of_mine.hinge": {"margin": 0}}},
            "config.loss.of_mine.hinge.margin is 0.0; it must be > 0",
        ),
        (
            {"init": {"of_mine.Louder": {"factor": -1.0}}},
            "config.init.of_mine.Louder.factor is -1.0; it must be > 0",
        ),
        ({"init": {"math.sqrt": {}}}, "'math.sqrt', which is no Initialisation"),
        ({"regularizer.power": "x"}, "config.regularizer.power is 'x'; it must be a"),
    ],
)
def test_their_options_are_checked_like_any_others(tmp_path, mine, change, message):
    config = config_of()
    for field, value in change.items():
        *groups, last = field.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    with pytest.raises(InputError) as error:
        run.run(config, tmp_path / "run", Console(quiet=True))
    assert message in str(error.value)


def test_options_of_a_dotted_name_are_set_on_the_command_line(mine):
    config = config_of()
    for field, text in (
        ("loss.of_mine.hinge.margin", "2"),
        ("init.of_mine.Louder.factor", "4"),
        ("log.trackers.of_mine.Tracker", "true"),
        ("loss.m3.temperature", "0.1"),
        ("loss.infonec.temperature", "0.1"),
    ):
        fields.set_field(config, field, text, "--config")
    assert config.loss == {
        "of_mine.hinge": {"margin": 2, "weight": 0.5},
        "m3": {"temperature": 0.1},
        "infonec": {"temperature": 0.1},
    }
    assert config.init == {"of_mine.Louder": {"factor": 4}}
    assert config.log.trackers == {"of_mine.Tracker": {}}
    config.loss = {}
    fields.set_field(config, "loss.of_mine.hinge.margin", "-1", "--config")
    with pytest.raises(InputError, match="loss.of_mine.hinge.margin is -1.0; it must"):
        validate(config)


WRONG = """
import dataclasses

from lsrjax.data.batching.mixing import Mixer
from lsrjax.losses.loss import Loss, LossOptions
from lsrjax.losses.regularizers import Regularizer
from lsrjax.models.adapters import Adapter
from lsrjax.models.layers import Head
from lsrjax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Right(LossOptions):
    margin: float = option(1.0, "how far apart", above=0)


@dataclasses.dataclass(frozen=True)
class Bare(LossOptions):
    margin: float = 1.0


class Undecorated(LossOptions):
    margin: float = option(1.0, "how far apart", above=0)


@dataclasses.dataclass(frozen=True)
class Plain:
    margin: float = 1.0


@dataclasses.dataclass(frozen=True)
class Other(Options):
    margin: float = option(1.0, "how far apart", above=0)


@dataclasses.dataclass(frozen=True)
class BareOther(Options):
    margin: float = 1.0


third = Loss(len, ("query", "document"), Right)
bare = Loss(len, ("query", "document"), Options=Bare)
undecorated = Loss(len, ("query", "document"), Options=Undecorated)
plain = Loss(len, ("query", "document"), Options=Plain)
other = Loss(len, ("query", "document"), Options=Other)
second = Regularizer(len, Right)
of_texts = Regularizer(len, Options=Other)
mixer = Mixer(len, BareOther)
function = len


class PlainHead(Head):
    Options = Plain


class BareAdapter(Adapter):
    Options = BareOther
"""


@pytest.mark.parametrize(
    ("field", "name", "said"),
    [
        ("loss", "third", "has the options Right as its targets; write Loss(…,"
         " Options=Right)."),
        ("loss", "bare", "its field margin is no lsrjax.options.option(…)"),
        ("loss", "undecorated", "is no dataclass; write @dataclasses.dataclass(frozen"),
        ("loss", "plain", "they have to be a subclass of lsrjax.losses.loss.LossOpt"),
        ("loss", "other", "they have to be a subclass of lsrjax.losses.loss.LossOpt"),
        ("regularizer", "second", "has the options Right as its joint; write Regul"),
        ("regularizer", "of_texts", "a subclass of lsrjax.losses.regularizers.OfTexts"),
        ("data.mixer", "mixer", "its field margin is no lsrjax.options.option(…)"),
        ("data.mixer", "function", "is no lsrjax.data.batching.mixing.Mixer but"),
        ("model.head", "PlainHead", "they have to be a subclass of lsrjax.options.Opt"),
        ("adapt", "BareAdapter", "its field margin is no lsrjax.options.option(…)"),
    ],
)  # fmt: skip
def test_wrongly_declared_options_say_what_to_write(
    tmp_path, monkeypatch, field, name, said
):
    (tmp_path / "of_wrong.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    config = get_default()
    config.loss = {"infonce": {}}
    value = f"of_wrong.{name}"
    if field == "data.mixer":
        config.data.sets = {"a": data_set(), "b": data_set()}
    fields.set_field(
        config,
        field,
        repr({value: {}}) if field in ("loss", "adapt") else value,
        "--config",
    )
    with pytest.raises(InputError) as error:
        validate(config)
    assert f"config.{field} names {value!r}, which" in str(error.value)
    assert said in str(error.value)


def test_names_are_looked_for_beside_the_config_last(tmp_path):
    (tmp_path / "beside_a_config.py").write_text(
        "def get_config():\n    from lsrjax.config import get_default\n"
        "    import beside_it\n    return get_default()\n"
    )
    (tmp_path / "beside_it.py").write_text("one = 1\n")
    (tmp_path / "difflib.py").write_text("SequenceMatcher = one = 1\n")
    with pytest.raises(InputError, match="beside_it.one', which could not be imported"):
        lookup.entry({}, "beside_it.one", "config.loss")
    before = list(sys.path)
    fields.load(tmp_path / "beside_a_config.py")
    assert lookup.entry({}, "beside_it.one", "config.loss") == 1
    assert lookup.entry({}, "difflib.SequenceMatcher", "config.loss") != 1
    assert sys.path == before


OF_DATA = '''
import dataclasses
import json

from lsrjax.data.batching.mixing import Mixer
from lsrjax.data.batching.negatives import Sampler
from lsrjax.data.examples import ANY, Group, InMemory
from lsrjax.data.reading.formats import Format
from lsrjax.data.sources import Source
from lsrjax.options import Options, option


class Counted(Source):
    """Groups that are made up, or rows of JSON where a file is named."""

    rows = False
    languages = ("en",)

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        count: int = option(3, "groups", above=0)
        start: int = option(0, "number of the first")

    @staticmethod
    def open(options, asked):
        assert asked.kind == "group"
        numbers = range(options.start, options.start + options.count)
        found = [
            Group(
                str(i),
                {"en": f"q{i}"},
                [{"en": f"p{i}"}],
                [{"en": f"n{i}.{j}"} for j in range(4)],
            )
            for i in numbers
        ]
        return InMemory(found, f"counted from {options.start}")


class Lines(Source):
    """Rows of a file, of which each is JSON."""

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        path: str = option("", "of the file")

    needs = ("path",)

    @staticmethod
    def open(options, asked):
        import pyarrow as pa

        with open(options.path) as file:
            table = pa.Table.from_pylist([json.loads(line) for line in file])
        return asked.rows([(options.path, table)])

    @staticmethod
    def paths(options, asked):
        return iter([options.path])


@dataclasses.dataclass(frozen=True)
class Power(Options):
    power: float = option(1.0, "of the number of examples", above=-9)


mixer = Mixer(lambda sizes, power: [n**power for n in sizes.values()], Power)


@dataclasses.dataclass(frozen=True)
class Skip(Options):
    skip: int = option(1, "negatives left out first", low=0)


def _after(group, positives, places, need, rng, skip):
    return [(skip + i) % len(places) for i in range(need)]


sampler = Sampler(_after, Skip, ordered=True)


@dataclasses.dataclass(frozen=True)
class Words(Options):
    between: str = option(" ", "query and positive")


def _fields(names, options):
    return {"line": "line"} if "line" in names else None


def _read(row, where, lookup):
    query, positive = row["line"].split(lookup.options.between)
    return Group(where, {ANY: query}, [{ANY: positive}], [])


words = Format("group", "line: query and positive", _fields, _read, Words)
'''


@pytest.fixture
def of_data(tmp_path, monkeypatch):
    (tmp_path / "data_of_mine.py").write_text(OF_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    return "data_of_mine"


def test_sources_mixers_and_samplers_from_outside_have_options(of_data, tmp_path):
    data = get_default().data
    data.sets = {
        "few": data_set(source=entry(f"{of_data}.Counted")),
        "many": data_set(source=entry(f"{of_data}.Counted", count=12, start=50)),
    }
    data.mixer = entry(f"{of_data}.mixer", power=-1.0)
    few, many = mixing.open_sets(data, "group")
    assert [len(few), len(many)] == [3, 12] and many[0].query == {"en": "q50"}
    order = mixing.order_of(data, [3, 12], 5, 0)
    drawn = [example < 3 for i in range(4) for _, example in order[i]]
    assert sum(drawn) == 16  # 1/3 to 1/12: four of five
    assert mixing.languages(data) == ("en",)
    data.negatives = entry(f"{of_data}.sampler", skip=2)
    choice = negatives.choice_of(data)
    assert choice(few[0], 4, np.random.default_rng(0)) == [0, 3, 4, 1]


def test_rows_of_a_source_and_a_format_from_outside(of_data, tmp_path):
    (tmp_path / "x.json").write_text('{"line": "a-b"}\n{"line": "c-d"}\n')
    data = get_default().data
    data.source = entry(f"{of_data}.Lines", path=str(tmp_path / "x.json"))
    data.format = entry(f"{of_data}.words", between="-")
    (source,) = mixing.open_sets(data, "group")
    assert [group.positives[0]["*"] for group in source] == ["b", "d"]
    folder = tmp_path / "data.json"
    unchanged_files.check_files(folder, data, get_default().dev)
    (tmp_path / "x.json").write_text('{"line": "a-b"}\n')
    with pytest.raises(InputError, match="x.json is truncated"):
        unchanged_files.check_files(folder, data, get_default().dev)


@pytest.mark.parametrize(
    ("field", "node", "message"),
    [
        (
            "source",
            ("Counted", {"cuont": 3}),
            "config.data.source.cuont is no option of 'data_of_mine.Counted'; the"
            " nearest is config.data.source.count",
        ),
        ("source", ("Counted", {"count": 0}), "config.data.source.count is 0; it must"),
        ("source", ("Lines", {}), "config.data.source.path is '', but the source"),
        ("negatives", ("sampler", {"skip": -1}), "config.data.negatives.skip is -1"),
        ("mixer", ("mixer", {"power": "x"}), "config.data.mixer.power is 'x'; it must"),
        ("format", ("words", {"between": 1}), "config.data.format.between is 1; it"),
    ],
)
def test_options_of_data_from_outside_are_checked(of_data, field, node, message):
    config = config_of()
    config.model.head, config.regularizer, config.loss = "splade", "l1", "infonce"
    config.data.source = entry("files", files="x")
    name, options = node
    config.data[field] = entry(f"{of_data}.{name}", **options)
    with pytest.raises(InputError) as error:
        validate(config)
    assert message in str(error.value)
