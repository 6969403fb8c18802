"""`lsrjax encode --ray` on a real cluster of two nodes, whose actor is killed."""

import json
import os
import pathlib
import signal
import threading
import time
import uuid

import pytest
from programs import launch, tiny

from lsrjax.checkpoint import saved_model
from lsrjax.cli import encode
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.vector_formats.reading import open_vectors

ROOT = pathlib.Path(__file__).parents[2]
MARK = "LSRJAX_TEST_CLUSTER"  # tells its processes from others'
WORDS = "red apple a library of numbers tree house mouse".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and texts in Parquet."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("ray")
    tokenizer = tokenizer_folder("embedded:english")
    size = TextTokenizer(tokenizer).vocab_size
    encoder = tiny.encoder(vocab_size=size, hidden_size=8, max_positions=24)
    spec = RetrieverSpec.of("splade", encoder)
    params = retriever.init_params(spec, 3)
    (folder / "model").mkdir()
    model = saved_model.SavedModel(spec, params, tokenizer, None, "random")
    saved_model.save_model(folder / "model", model)
    texts = [f"{' '.join(WORDS[: i % 9])} {i}" for i in range(900)]
    ids = [f"d{i}" for i in range(900)]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "docs.parquet")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each."""
    before = dict(os.environ)
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ[MARK] = uuid.uuid4().hex
    # Compiled as in this process, whose numbers they are compared with.
    os.environ["XLA_FLAGS"] = launch.QUICK
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


def run(folder, out, *more):
    args = ("--model", "model", "--texts", "docs.parquet", "--out", str(out))
    args = (*args, "--format", "parquet", "--part_rows", "100", "--batch_size", "8")
    encode.main([*args, *more])


def actors():
    """The processes of this cluster's actors."""
    own = f"{MARK}={os.environ[MARK]}".encode()
    for status in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            actor = b"MapWorker" in (status / "cmdline").read_bytes()
            if actor and own in (status / "environ").read_bytes().split(b"\0"):
                yield int(status.name)
        except OSError:  # it has ended
            continue


def killer(records, killed, stop):
    """Kills an actor once parts are there."""
    while not stop.is_set() and not killed:
        if len([*records.glob("*.json")]) >= 2:
            for pid in actors():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
        time.sleep(0.01)


@pytest.mark.slow
def test_a_cluster_makes_the_bytes_of_one_process(folder, cluster, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run(folder, "one")
    killed, stop = [], threading.Event()
    watch = threading.Thread(target=killer, args=(folder / "ray/records", killed, stop))
    watch.start()
    try:
        run(folder, "ray", "--ray", cluster.address)
    finally:
        stop.set()
        watch.join()
    assert killed, "no actor was found"
    found, wanted = open_vectors(folder / "ray"), open_vectors(folder / "one")
    assert found.whole()[0] == wanted.whole()[0] == [f"d{i}" for i in range(900)]
    for path in (folder / "one/parts").iterdir():
        assert (folder / "ray/parts" / path.name).read_bytes() == path.read_bytes()
    one, other = (
        json.loads((folder / name / "manifest.json").read_text())
        for name in ("one", "ray")
    )
    assert one == other and len(one["parts"]) == 9
    assert "900 texts encoded in ray" in capsys.readouterr().out


def test_ray_needs_a_folder_and_a_cluster(folder, monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        run(folder, "v.parquet", "--ray", "local")
    assert "Name a folder" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SystemExit):
        run(folder, "v", "--ray", "local")
    assert "pip install 'lsrjax[ray]'" in capsys.readouterr().err
