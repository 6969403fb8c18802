"""A toy task made of mteb's own classes: its score of a model is ours."""

import numpy as np
import pytest
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import rank
from lsrjax.retrieval.mteb_model import MtebModel
from lsrjax.retrieval.rank import Searcher, Way
from lsrjax.retrieval.task_results import PartResults
from lsrjax.retrieval.tasks.mteb import Mteb

# Importing mteb takes ten seconds.
pytestmark = pytest.mark.slow
WORDS = ["apple", "library", "network", "editor", "game", "music", "python", "kernel"]


@pytest.fixture(scope="module")
def model():
    tokenizer = tokenizer_folder("embedded:english")
    size = TextTokenizer(tokenizer).vocab_size
    encoder = tiny.encoder(vocab_size=size, hidden_size=8, max_positions=40)
    spec = RetrieverSpec.of("splade", encoder)
    params = retriever.init_params(spec, 5)
    lengths = {"query_length": 16, "document_length": 32}
    return SavedModel(spec, params, tokenizer, None, "runs/toy", **lengths)


def toy(identical=False):
    """A multilingual retrieval task of mteb whose data is made here."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    rng = np.random.default_rng(0)

    def text(words):
        return " ".join(rng.choice(WORDS, words))

    def split():
        docs = [{"id": f"d{i}", "title": "", "text": text(3)} for i in range(41)]
        docs[7]["text"] = docs[8]["text"] = docs[9]["text"]
        docs[3]["title"] = "kernel"
        name = "d" if identical else "q"
        asked = [{"id": f"{name}{i}", "text": text(2)} for i in range(13)]
        judged = {
            row["id"]: {
                f"d{j}": int(rng.integers(0, 3)) for j in rng.choice(41, 5, False)
            }
            | {f"d{rng.integers(41)}": 2}
            for row in asked
        }
        return {
            "corpus": Dataset.from_list(docs),
            "queries": Dataset.from_list(asked),
            "relevant_docs": judged,
            "top_ranked": None,
        }

    class Toy(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="ToyRetrieval",
            description="A toy.",
            reference=None,
            dataset={"path": "toys/toy", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs={"en": ["eng-Latn"], "da": ["dan-Latn"]},
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = identical

        def load_data(self, **kwargs):
            self.dataset = {lang: {"test": split()} for lang in ("en", "da")}
            self.data_loaded = True

    return Toy()


@pytest.mark.parametrize("identical", [False, True])
def test_mtebs_own_score_is_ours(model, identical, monkeypatch):
    import mteb

    task = toy(identical)
    task.load_data()
    found = mteb.evaluate(
        MtebModel(model), task, cache=None, co2_tracker=False, show_progress_bar=False
    )
    scores = {row["hf_subset"]: row for row in found[0].scores["test"]}
    monkeypatch.setattr(mteb, "get_task", {"ToyRetrieval": task}.__getitem__)
    monkeypatch.setattr(type(task), "load_data", lambda self, **kwargs: None)
    searcher = Searcher.portable(model)
    given = Mteb.Options(names=("ToyRetrieval",))
    ours = [Mteb.load(part) for part in Mteb.parts(given)]
    assert [one.name for one in ours] == ["ToyRetrieval/en", "ToyRetrieval/da"]
    for one, language in zip(ours, ("en", "da"), strict=True):
        assert one.metrics == ("nDCG@10", "R@100") and one.own_ids == identical
        # mteb asks for 1,000 documents and takes the query's own from them.
        ranking = rank.rank(one, searcher, {"": Way()}, 41 - identical)[""]
        metrics = ("nDCG@10", "R@5", "AP@20", "RR@10")
        part = PartResults.of(one, metrics)
        part.add("", one, ranking)
        values = part.means("")[language]
        names = ("ndcg_at_10", "recall_at_5", "map_at_20", "mrr_at_10")
        for name, metric in zip(names, metrics, strict=True):
            wanted = pytest.approx(values[metric], abs=1e-5)  # mteb rounds
            assert scores[language][name] == wanted
        assert scores[language]["main_score"] == scores[language]["ndcg_at_10"]
        assert 0.01 < scores[language]["main_score"] < 0.99


def test_tasks_that_rerank_rank_only_their_documents(model):
    from datasets import Dataset

    adapter = MtebModel(model)
    rows = [{"id": f"d{i}", "text": word} for i, word in enumerate(WORDS)]
    adapter.index(Dataset.from_list(rows))
    queries = Dataset.from_list([{"id": "q", "text": "apple"}])
    only = {"q": ["d2", "d5"]}
    found = adapter.search(queries, top_k=3, top_ranked=only)
    assert set(found["q"]) <= {"d2", "d5"} and found["q"]
    assert len(adapter.search(queries, top_k=3)["q"]) == 3


def test_what_mteb_lacks_is_named():
    with pytest.raises(InputError, match="has no task 'NoSuchTask'"):
        Mteb.parts(Mteb.Options(names=("NoSuchTask",)))
    with pytest.raises(InputError, match="is no retrieval task"):
        Mteb.parts(Mteb.Options(names=("STS12",)))
