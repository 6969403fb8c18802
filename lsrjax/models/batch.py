"""The texts of a batch, encoded as they are cut: in parts, chunks and over devices."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import reps, sharding
from lsrjax.models.retriever import QUERY, apply


def apply_batch(
    graphdef: nnx.GraphDef,
    params: dict,
    texts: dict,
    counts: dict[str, int],
    *,
    queries: dict | None = None,
    chunk: int = 0,
    remat: str = "none",
    dropout_key: jax.Array | None = None,
) -> dict[str, reps.Views]:
    """Encodes the texts of a batch, cut as `lsrjax.data.shapes.cut` does.

    Args:
      graphdef: of the model.
      params: of the model.
      texts: `{"parts", "place", "text"}` of every device, laid end to end. A device's
        texts are ordered by name, then by example.
      counts: texts of an example, by name, in order.
      queries: the texts named "query", where they are cut by themselves and are not
        among `texts`: those of models whose `RetrieverSpec.roles_apart` is true.
      chunk: texts that a device encodes at a time; for more, the encoding is computed
        again in the backward pass. 0: all at once, nothing again.
      remat: what the backward pass computes again, see `lsrjax.models.encoder`.
      dropout_key: with one, what is dropped of a text depends on its name and place in
        the batch, not on how the batch is cut. Without one nothing is dropped.

    Returns:
      By name, the views of the texts in the order of the examples.
    """
    sets = _sets(texts, counts, queries)
    examples = sum(len(own["place"]) for own, _ in sets) // sum(counts.values())
    # Texts are numbered by name, then by example, in whichever set they are.
    firsts, first = {}, 0
    for name, count in counts.items():
        firsts[name] = first
        first += examples * count
    options = {"chunk": chunk, "remat": remat, "dropout_key": dropout_key}
    views = {}
    for own, names in sets:
        views |= _apply_cut(graphdef, params, own, names, firsts, **options)
    return {name: views[name] for name in counts}


def tokens_of(
    texts: dict, counts: dict[str, int], *, queries: dict | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The token ids of a batch's texts and their mask, [B, L] each, by name.

    Args:
      texts: as `apply_batch` takes them.
      counts: texts of an example, by name, in order.
      queries: as `apply_batch` takes them.
    """
    devices = sharding.axis_size(sharding.DATA)
    found = {}
    for own, names in _sets(texts, counts, queries):
        place_dn, text_dn = (own[k].reshape(devices, -1) for k in ("place", "text"))
        pieces = [(part["ids"], part["mask"]) for part in own["parts"]]
        found |= _by_name(_in_order(pieces, place_dn, text_dn), devices, names)
    return found


def _sets(texts: dict, counts: dict[str, int], queries: dict | None) -> list[tuple]:
    """The texts that are cut together, and how many of each name an example has."""
    if queries is None:
        return [(texts, counts)]
    others = {name: count for name, count in counts.items() if name != QUERY}
    return [(queries, {QUERY: counts[QUERY]}), (texts, others)]


def _apply_cut(
    graphdef, params, texts, counts, firsts, *, chunk, remat, dropout_key
) -> dict[str, reps.Views]:
    """`apply_batch` of texts that are cut together; `firsts` numbers them."""
    devices = sharding.axis_size(sharding.DATA)
    place_dn, text_dn = (texts[k].reshape(devices, -1) for k in ("place", "text"))
    number_dn = _numbers(devices, place_dn.shape[1], counts, firsts)
    alike = QUERY not in counts or len(counts) == 1
    role = (QUERY if QUERY in counts else "document") if alike else None
    pieces, first = [], 0
    for part in texts["parts"]:
        last = first + len(part["ids"]) // devices
        keys_B = None
        if dropout_key is not None:
            chosen_dn = jnp.take_along_axis(number_dn, text_dn[:, first:last], axis=1)
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
                dropout_key, chosen_dn.reshape(-1)
            )
        if role is None:
            query_dn = _are_queries(devices, place_dn.shape[1], counts)
            query_B = jnp.take_along_axis(query_dn, text_dn[:, first:last], axis=1)
            part = part | {"query": query_B.reshape(-1)}
        pieces.append(_apply_part(graphdef, params, part, keys_B, role, chunk, remat))
        first = last
    views = {
        name: _in_order([piece[name] for piece in pieces], place_dn, text_dn)
        for name in pieces[0]
    }
    return _by_name(views, devices, counts)


def _numbers(devices: int, n: int, counts: dict[str, int], firsts) -> jax.Array:
    """A number for each text of each device, [devices, n]; each name begins its own."""
    examples = n // sum(counts.values())
    numbers = [
        firsts[name] + jnp.arange(devices * examples * count).reshape(devices, -1)
        for name, count in counts.items()
    ]
    return jnp.concatenate(numbers, axis=1)


def _are_queries(devices: int, n: int, counts: dict[str, int]) -> jax.Array:
    """Whether each text of each device is a query, [devices, n]."""
    examples = n // sum(counts.values())
    of_one = [
        jnp.full((devices, examples * count), name == QUERY)
        for name, count in counts.items()
    ]
    return jnp.concatenate(of_one, axis=1)


def _by_name(views: reps.Views, devices: int, counts: dict[str, int]):
    found, first, total = {}, 0, sum(counts.values())
    for name, count in counts.items():

        def of(x, first=first, last=first + count):
            examples = len(x) // devices // total
            x = x.reshape(devices, examples * total, *x.shape[1:])
            x = x[:, first * examples : last * examples]
            return x.reshape(-1, *x.shape[2:])

        found[name] = jax.tree.map(of, views)
        first += count
    return found


def _apply_part(graphdef, params, part, keys_B, role, chunk, remat) -> reps.Views:
    """`apply`, `chunk` texts of each device at a time."""
    devices = sharding.axis_size(sharding.DATA)
    count = len(part["ids"]) // devices

    def encode(text_and_keys):
        text, keys_B = text_and_keys
        options = {"role": role, "dropout_keys_B": keys_B, "remat": remat}
        return apply(graphdef, params, text, **options)

    if not chunk or chunk >= count:
        return encode((part, keys_B))
    chunks = math.ceil(count / chunk)

    def divide(x):
        """[devices * count, ...] to [chunks, devices * chunk, ...], filled up."""
        x = x.reshape(devices, count, *x.shape[1:])
        extra = chunks * chunk - count
        # Texts are filled up with copies of a device's first one, which are cut off.
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], extra, axis=1)], axis=1)
        x = x.reshape(devices, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(chunks, devices * chunk, *x.shape[3:])

    def join(x):
        x = x.reshape(chunks, devices, chunk, *x.shape[2:]).swapaxes(0, 1)
        x = x.reshape(devices, chunks * chunk, *x.shape[3:])[:, :count]
        return x.reshape(devices * count, *x.shape[2:])

    views = jax.lax.map(jax.checkpoint(encode), jax.tree.map(divide, (part, keys_B)))
    return jax.tree.map(join, views)


def _in_order(pieces: list[reps.View], place_dn, text_dn):
    """The parts' views as one, every device's texts in their order."""
    devices = len(place_dn)

    def join(*leaves):
        # Of shorter texts, bags hold fewer terms and multi-vectors fewer tokens.
        widest = max(leaf.shape[1] for leaf in leaves)
        rows_dn = jnp.concatenate(
            [
                jnp.pad(
                    leaf,
                    ((0, 0), (0, widest - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)),
                ).reshape(devices, -1, widest, *leaf.shape[2:])
                for leaf in leaves
            ],
            axis=1,
        )
        in_order_dn = jax.vmap(_permuted)(rows_dn, place_dn, text_dn)
        return in_order_dn.reshape(-1, *in_order_dn.shape[2:])

    return jax.tree.map(join, *pieces)


@jax.custom_vjp
def _permuted(x_n, place_n, text_n):
    """`x[place]`, whose gradient is a gather too: `text` is the inverse of `place`."""
    return x_n[place_n]


def _permuted_fwd(x_n, place_n, text_n):
    return x_n[place_n], text_n


def _permuted_bwd(text_n, g_n):
    return g_n[text_n], None, None


_permuted.defvjp(_permuted_fwd, _permuted_bwd)
