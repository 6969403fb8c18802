"""However the work is cut, the result is the same; and what is never made or moved."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from programs import tiny

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.retriever import RetrieverSpec

PROGRAMS = pathlib.Path(__file__).parents[1] / "programs"
TASKS = ("alignment", "kl", "infonce")
MESHES = ("1:1", "2:1", "1:2", "2:2", "8:1", "4:2", "2:4", "1:8")
# Each mesh in a task, every second one with FSDP.
GRID = [
    f"{TASKS[number % 3]}:{mesh}:{number % 2}:0:none"
    for number, mesh in enumerate(MESHES)
]
# What takes no minutes, pairs and groups; `pytest -m slow` takes the grid.
CHOSEN = ["alignment:2:4:1:0:none", "round_robin:4:2:0:0:none"]
# Micro-batches and rematerialisation, on one device and on several.
CUTS = [
    *("kl:1:1:0:1:none", "kl:1:1:0:3:layer", "infonce:2:2:0:3:layer"),
    "round_robin:1:1:0:3:none",
]


def run_cases(folder, cases, tasks=TASKS):
    """Values by name of each case, and of each task on one device."""
    cases = [*(f"{task}:1:1:0:0:none" for task in tasks), *cases]
    cases = list(dict.fromkeys(cases))
    out = folder / "steps.npz"
    program = [sys.executable, str(PROGRAMS / "mesh_steps.py"), str(out), *cases]
    subprocess.run(program, check=True)
    found = {case: {} for case in cases}
    with np.load(out) as arrays:
        for key in arrays.files:
            case, name = key.split("|")
            found[case][name] = arrays[key]
    return found


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chosen")
    return run_cases(folder, [*CHOSEN, *CUTS], (*TASKS, "round_robin"))


def assert_same(found, wanted, tolerance):
    """Each array to a tolerance of its largest entry."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.abs(found[name] - value).max()
        assert error <= tolerance * np.abs(value).max(), name


@pytest.mark.parametrize("case", CHOSEN)
def test_no_mesh_changes_a_step(chosen, case):
    single = chosen[f"{case.split(':')[0]}:1:1:0:0:none"]
    assert_same(chosen[case], single, 1e-5)
    assert single["0/grad_norm"] > 0.1
    assert all(single[f"{step}/loss"] > 0.01 for step in range(3))


def test_signs_of_health_are_of_the_whole_batch(chosen):
    found = chosen["round_robin:4:2:0:0:none"]
    signs = {name.removeprefix("0/") for name in found if name.startswith("0/")}
    assert signs >= {
        "language_kl",
        "expansion_query_terms",
        "expansion_document_terms",
        "by_language/active_query_terms",
        "by_language/active_document_terms",
    }
    assert float(found["0/language_kl"]) > 0.01
    for text, count in (("query", 8), ("document", 24)):
        assert 0.1 < found[f"0/expansion_{text}_terms"] < 0.99
        sums, numbers = found[f"0/by_language/active_{text}_terms"]
        # Of random numbers, those that stand for no language are in none.
        assert 4 < numbers.sum() < count and (sums > 0)[numbers > 0].all()


@pytest.mark.parametrize("case", CUTS)
def test_no_micro_batch_changes_a_step(chosen, case):
    single = chosen[f"{case.split(':')[0]}:1:1:0:0:none"]
    # On more than one device the sums have another order besides.
    tolerance = 1e-6 if ":1:1:" in case else 1e-5
    assert_same(chosen[case], single, tolerance)


# Each of these is compiled for eight devices, which takes seconds: so one cut has all
# that matters at once: encoders are computed again besides, which no head is; and what
# compares the texts of a whole batch has a mesh of texts alone, too.
OF_HEADS, OF_ENCODERS, BY_TEXTS = "2:4:1:3:none", "2:4:1:3:layer", "8:1:0:0:none"
TOWERS = ("towers", "csr_towers")
OTHERS = (
    *("static", "sum", "token_weights", "dense", "prefixes", "hybrid", "aggretriever"),
    *("m3_all", "csr_ties", "colbert_all", "batch", "dro", "lookups", "batch_wide"),
    *("angle", "mlm_static", "lora", "prompt", *TOWERS),
)
OVER_THE_BATCH = ("hybrid", "m3_all", "csr_ties", "batch", "batch_wide")
# The last one of each class of encoders: what is divided and computed again is its.
FAMILIES = tuple({entry.encoder: name for name, entry in BACKBONES.items()}.values())
OTHER_CASES = [
    *(f"{task}:{OF_HEADS}" for task in OTHERS),
    *(f"{task}:{OF_ENCODERS}" for task in FAMILIES),
    *(f"{task}:{BY_TEXTS}" for task in OVER_THE_BATCH),
]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    return run_cases(folder, OTHER_CASES, (*OTHERS, *FAMILIES))


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER_CASES)
def test_no_cut_changes_a_step_of_any_head_or_family(others, case):
    single = others[f"{case.split(':')[0]}:1:1:0:0:none"]
    assert_same(others[case], single, 1e-5)
    assert single["0/grad_norm"] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("task", TOWERS)
def test_separate_towers_are_two(others, task):
    found = others[f"{task}:{OF_HEADS}"]
    towers = {"params/encoder", "params/head", "params/query_tower"}
    assert towers <= {"/".join(name.split("/")[:2]) for name in found}


@pytest.mark.slow
def test_no_mesh_changes_a_step_in_all_the_grid(tmp_path):
    cases = [*GRID, "alignment:2:2:0:1:dots"]
    found = run_cases(tmp_path, cases)
    for case in cases:
        single = found[f"{case.split(':')[0]}:1:1:0:0:none"]
        assert_same(found[case], single, 1e-5)


# What may be gathered, in entries: a fifth of it is less than any table. Without fsdp
# nothing but InfoNCE's queries, to meet all documents.
LARGE = 20_000
HLO = {
    "kl:1:1:0": 0,
    "kl:2:4:0": 0,
    "kl:4:2:1": 1,  # the decoder, where it is used
    "infonce:4:2:0": 1,  # the queries
    "alignment:2:4:0": 0,
    "alignment:4:2:1": 2,  # the decoder and the teacher's
    "encode:1:1:0": 0,
    "encode:2:4:0": 0,
}
_ARRAY = re.compile(r"\b[a-z]+\d+\[([\d,]+)\]")
_GATHER = re.compile(r"= (.*?) (?:all-gather|all-to-all)(?:-start)?\(")


def sizes(text):
    return [int(np.prod([int(n) for n in m.split(",")])) for m in _ARRAY.findall(text)]


@pytest.fixture(scope="module")
def hlo(tmp_path_factory):
    out = tmp_path_factory.mktemp("hlo") / "hlo.json"
    program = [sys.executable, str(PROGRAMS / "step_hlo.py"), str(out), *HLO]
    subprocess.run(program, check=True)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", HLO)
def test_logits_of_all_tokens_and_terms_never_exist(hlo, case):
    task, data, model, _ = case.split(":")
    texts = {"alignment": 32, "encode": 64}.get(task, 64)
    logits = texts * 16 * 2**16 // (int(data) * int(model))
    largest = max(sizes(hlo[case]))
    assert 2**16 <= largest < logits / 2


@pytest.mark.parametrize("case", HLO)
def test_nothing_large_is_gathered_unawares(hlo, case):
    gathers = [max(sizes(m), default=0) for m in _GATHER.findall(hlo[case])]
    assert sum(size > LARGE for size in gathers) == HLO[case]


def milco(heads=4, vocab=48, terms=37, layers=1):
    encoder = tiny.encoder(
        "xlm-roberta",
        vocab_size=vocab,
        hidden_size=16,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=24,
        max_positions=9,
    )
    return RetrieverSpec.of(
        "milco",
        encoder,
        pivot_vocab_size=terms,
        pivot_hidden_size=12,
        lexecho=True,
    )


def layout_on(data, model, *, fsdp=False, **sizes):
    mesh = AbstractMesh(
        (data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )
    spec = milco(**sizes)
    _, params = retriever.split(spec)
    heads = spec.encoder.num_heads
    return sharding.layout(params, mesh, num_heads=heads, fsdp=fsdp)


def test_heads_inner_width_and_vocabularies_are_divided():
    found = layout_on(2, 4, terms=40)
    layer = "encoder/layers/"
    wanted = {
        "encoder/embeddings/word/embedding": P("model", None),
        "encoder/embeddings/position/embedding": P(None, None),
        layer + "attention/qkv/kernel": P(None, None, None, "model"),
        layer + "attention/qkv/bias": P(None, None, "model"),
        layer + "attention/out/kernel": P(None, "model", None),
        layer + "attention/out/bias": P(None, None),
        layer + "up/kernel": P(None, None, "model"),
        layer + "up/bias": P(None, "model"),
        layer + "down/kernel": P(None, "model", None),
        layer + "down/bias": P(None, None),
        layer + "attention_norm/bias": P(None, None),
        layer + "output_norm/scale": P(None, None),
        "head/connector/kernel": P(None, None),
        "head/mlm/decoder": P("model", None),
        "head/mlm/bias": P("model"),
        "head/echo/scale": P(),
    }
    assert wanted.items() <= found.specs.items()
    assert found.notes == ()


def test_weights_of_words_are_divided_with_the_vocabulary():
    mesh = AbstractMesh((2, 4), ("data", "model"))
    params = {"head": {"static": np.zeros(40)}}
    found = sharding.layout(params, mesh, num_heads=1, fsdp=False)
    assert found.specs == {"head/static": P("model")}


def test_moments_are_divided_as_their_parameters_and_counts_are_not():
    found = layout_on(2, 4, terms=40)
    bias = {"head": {"mlm": {"bias": np.zeros(40)}}}
    state = {"params": bias, "mu": bias, "counts": {"head": {"mlm": {"bias": 3}}}}
    specs = jax.tree.map(lambda one: one.spec, found.shardings(state | {"step": 0}))
    divided = {"head": {"mlm": {"bias": P("model")}}}
    whole = {"head": {"mlm": {"bias": P()}}}
    assert specs == {"params": divided, "mu": divided, "counts": whole, "step": P()}


def test_each_tower_lies_as_a_shared_one_does():
    mesh = AbstractMesh((2, 4), ("data", "model"))
    shared = milco(terms=40)
    separate = dataclasses.replace(shared, towers="separate")
    found, wanted = (
        sharding.layout(
            retriever.split(spec)[1],
            mesh,
            num_heads=spec.encoder.num_heads,
            fsdp=True,
        ).specs
        for spec in (separate, shared)
    )
    query = {f"query_tower/{name}": lies for name, lies in wanted.items()}
    assert found == wanted | query


def test_what_does_not_divide_is_said_and_lies_elsewhere():
    found = layout_on(1, 8)
    kernel = found.specs["encoder/layers/attention/qkv/kernel"]
    assert kernel == P(None, None, None, None)
    assert found.specs["encoder/layers/attention/qkv/bias"] == P(None, None, None)
    assert found.specs["head/mlm/decoder"] == P(None, None)
    notes = "\n".join(found.notes)
    assert "4 attention heads do not divide by mesh.model = 8: on every device" in notes
    assert "37 entries do not divide by mesh.model = 8" in notes
    by_hidden = layout_on(1, 4)
    assert by_hidden.specs["head/mlm/decoder"] == P(None, "model")
    wanted = "37 entries do not divide by mesh.model = 4: stored by hidden dimension"
    assert any(note.startswith(wanted) for note in by_hidden.notes)


def test_fsdp_divides_matrices_by_the_largest_dimension_that_divides():
    found = layout_on(4, 2, fsdp=True)
    assert found.specs["encoder/layers/up/kernel"] == P(None, "data", "model")
    assert found.specs["encoder/layers/down/kernel"] == P(None, "model", "data")
    kernel = found.specs["encoder/layers/attention/qkv/kernel"]
    assert kernel == P(None, "data", None, "model")
    assert found.specs["encoder/embeddings/position/embedding"] == P(None, "data")
    assert found.specs["head/connector/kernel"] == P("data", None)
    assert found.specs["encoder/layers/up/bias"] == P(None, "model")


@pytest.mark.parametrize(("layers", "data"), [(4, 4), (32, 4), (6, 3)])
def test_fsdp_never_divides_the_axis_of_layers(layers, data):
    """Even where it is the largest, or the only one that divides."""
    found = layout_on(data, 1, fsdp=True, layers=layers)
    stacked = {
        name: spec for name, spec in found.specs.items() if "encoder/layers/" in name
    }
    assert len(stacked) == 12 and all(spec[0] is None for spec in stacked.values())
    divided = {name for name, spec in stacked.items() if "data" in spec}
    if data == 4:
        # A stack of vectors is no matrix.
        assert divided == {name for name in stacked if name.endswith("kernel")}
    else:
        # 16 does not divide by 3; of the others, only the three of attention do.
        assert all("/qkv/" in name for name in divided)


@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_a_parameter_without_a_rule_is_named(shape):
    mesh = AbstractMesh((1, 1), ("data", "model"))
    params = {"head": {"new": {"gate": np.zeros(shape)}}}
    with pytest.raises(InputError, match=r"head/new/gate \(.*found: none"):
        sharding.layout(params, mesh, num_heads=1, fsdp=False)


def test_a_parameter_of_another_rank_than_its_rule_is_named():
    mesh = AbstractMesh((1, 1), ("data", "model"))
    params = {"head": {"mlm": {"decoder": np.zeros((2, 3, 4))}}}
    with pytest.raises(InputError, match=r"mlm/decoder \(2, 3, 4\) needs exactly one"):
        sharding.layout(params, mesh, num_heads=1, fsdp=False)


def test_two_rules_of_one_parameter_are_named():
    mesh = AbstractMesh((1, 1), ("data", "model"))
    params = {"head": {"mlm": {"bias": np.zeros(3)}}}
    more = (sharding.Rule("bias", (None,)),)
    with pytest.raises(InputError, match=r"found: mlm/bias, bias"):
        sharding.layout(params, mesh, num_heads=1, fsdp=False, rules=more)


@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), (-1, 2), (-1, -1), (0, 1), (-1, 0)])
def test_a_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(InputError, match=r"but there are 1 devices"):
        sharding.make_mesh(*sizes, devices=jax.devices()[:1])


def test_the_rest_of_the_devices():
    for sizes in ((-1, 1), (1, -1), (1, 1)):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:1])
        assert dict(mesh.shape) == {"data": 1, "model": 1}
        assert sharding.local_rows(mesh) == [0]


def test_nothing_is_constrained_without_a_mesh():
    x = np.ones((2, 3))
    assert sharding.constrain(x, "data", None) is x
    assert sharding.axis_size("model") == 1
