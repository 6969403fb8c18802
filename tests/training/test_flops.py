"""Operations by formula, against cases worked out by hand."""

from programs import tiny

from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import flops


def spec(head_name, **fields):
    encoder = tiny.encoder(
        vocab_size=11,
        hidden_size=6,
        num_layers=2,
        intermediate_size=10,
        max_positions=8,
    )
    return RetrieverSpec.of(head_name, encoder, **fields)


def test_operations_of_a_case_by_hand():
    # 3 texts of 5 tokens. A layer: 15 tokens times 4 x 6 x 6 + 2 x 6 x 10 = 264
    # parameters, two operations each; attention 15 x 5 x 6, twice.
    products = 2 * (2 * 15 * 264)
    attention = 2 * (2 * 2 * 15 * 5 * 6)
    encoder = products + attention
    # Transform 6 x 6, then 11 terms.
    splade = 2 * 15 * 6 * 6 + 2 * 15 * 6 * 11
    found = flops.forward(spec("splade", tied=True), [(3, 5)])
    assert (found.encoder, found.head) == (encoder, splade) == (19440, 3060)
    # Connector 6 x 4, transform 4 x 4, then 13 terms.
    milco = spec("milco", pivot_vocab_size=13, pivot_hidden_size=4)
    assert flops.forward(milco, [(3, 5)]).head == 2 * 15 * (24 + 16 + 4 * 13)
    for remat, chunked, times in [
        ("none", False, (3, 3, 3)),
        ("dots", False, (3, 4, 3)),
        ("layer", False, (4, 4, 3)),
        ("none", True, (4, 4, 4)),
        ("layer", True, (5, 5, 4)),
    ]:
        found = flops.training(spec("splade"), [(3, 5)], remat=remat, chunked=chunked)
        a, b, c = times
        assert found == flops.Flops(a * products + b * attention, c * splade)
    two = flops.forward(milco, [(3, 5), (2, 4)])
    assert two == flops.forward(milco, [(3, 5)]) + flops.forward(milco, [(2, 4)])
    assert two.both == two.encoder + two.head
