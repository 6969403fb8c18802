"""A run that trains prompt vectors: it goes on exactly, and its stage goes out."""

import io
import shutil

import numpy as np
import pytest
from programs import prompted
from rich.console import Console

from configs import golden_infonce
from lsrjax.checkpoint import saved_model
from lsrjax.convert import open_model
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import trees
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.training import run

PROMPT = "encoder/embeddings/word/prompt"


def trained(workdir):
    c = golden_infonce.get_config()
    c.adapt = {"prompt": {"queries": 3, "documents": 2}}
    c.steps, c.checkpoint.every, c.checkpoint.keep = 3, 1, 9
    c.optim.schedule = "constant"
    console = Console(file=io.StringIO(), width=200)
    run.run(c, workdir, console)
    return console.file.getvalue()


def state(folder, step):
    return trees.named(saved_model.host_arrays(folder / "checkpoints" / str(step)))


@pytest.mark.slow
def test_a_run_trains_vectors_alone_and_goes_on_exactly(tmp_path):
    said, folder = trained(tmp_path), tmp_path / "train"
    assert f"trained {5 * 32}" in said
    first, last = state(folder, 1), state(folder, 3)
    moved = {
        name
        for name in first
        if name.startswith("params/") and (first[name] != last[name]).any()
    }
    assert moved == {f"params/{PROMPT}"}
    # The state of the optimizer is of these rows alone.
    moments = [x.shape for n, x in last.items() if n.startswith("opt_state") and x.ndim]
    assert moments == [(5, 32)] * 2
    shutil.rmtree(folder / "checkpoints/3")
    (folder / "digests/3.json").unlink()
    (folder / "done.json").unlink()
    trained(tmp_path)
    again = state(folder, 3)
    assert again.keys() == last.keys()
    for name, value in last.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)

    model = open_model.open_portable(str(folder))
    table = model.params["encoder"]["embeddings"]["word"]["embedding"]
    rows = last[f"params/{PROMPT}"]
    np.testing.assert_array_equal(table[-5:], rows)
    names = [
        "".join(f"<|lsrjax_{role}_{i}|>" for i in range(n))
        for role, n in (("query", 3), ("document", 2))
    ]
    assert [model.spec.query_prompt, model.spec.document_prompt] == names
    # Queries are found with their own vectors, and change with them alone.
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=2)
    texts = ["free software", "the kernel"]

    def vectors(table):
        word = {"embedding": table}
        embeddings = model.params["encoder"]["embeddings"] | {"word": word}
        tower = model.params["encoder"] | {"embeddings": embeddings}
        params = model.params | {"encoder": tower}
        return [
            encoder.encode(params, texts, 16, role)["pivot"].toarray()
            for role in ("query", "document")
        ]

    before = vectors(table)
    for of, place in ((0, -5), (1, -1)):
        other = table.copy()
        other[place] = other[place, ::-1]
        after = vectors(other)
        assert np.abs(after[of] - before[of]).max() > 1e-4
        np.testing.assert_array_equal(after[1 - of], before[1 - of])

    # A stage that starts from it has them in front, too.
    later = prompted.student(prompted.config_of(model, 3, 2), model)
    np.testing.assert_array_equal(
        later.params["encoder"]["embeddings"]["word"]["embedding"], table
    )
