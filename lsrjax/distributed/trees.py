"""Names of a tree's leaves."""


def path_name(path) -> str:
    """`encoder/layers/0/up/kernel` for a path of `jax.tree_util`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
