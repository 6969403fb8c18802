"""What a stage starts from: the texts that statistics are taken from."""

import pytest

from lsrjax import build
from lsrjax.checkpoint import SavedModel
from lsrjax.config import get_default
from lsrjax.errors import InputError
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (4, [4]), (9, [4, 4])])
def test_few_texts_are_one_batch_and_many_are_full_ones(count, sizes):
    texts = [[str(i) for i in range(count // 2)], ["x"] * (count - count // 2)]
    assert [len(batch) for batch in build._batches(texts, 4)] == sizes


def test_a_sample_is_spread_over_languages_and_texts():
    texts = {"en": [str(i) for i in range(101)], "ja": ["a", "b"]}
    assert build._sample(texts, 10) == {
        "en": ["0", "25", "50", "75", "100"],
        "ja": ["a", "b"],
    }


def test_a_start_of_a_trained_source_view_is_refused():
    config = get_default()
    config.init.model, config.init.echo = "runs/distill", "idf"
    encoder = EncoderConfig("bert", 7, 4, 1, 1, 4, 8, 2, 0)
    spec = RetrieverSpec("milco", encoder, lexecho=True)
    model = SavedModel(spec, {"head": {"echo": {}}}, None, None, "runs/distill")
    with pytest.raises(InputError, match="'idf' would have no effect: runs/distill"):
        build.student(config, lambda reference: model)
