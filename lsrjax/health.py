"""Signs that a model with sparse vectors is lost: empty ones, terms that none uses."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax import reps

# Steps in a row without a single term before a run stops: by then no gradient reaches
# what should bring them back.
_PATIENCE = 50
_EMPTY = "empty_"


def signs(views: dict[str, reps.Views], more: bool) -> dict[str, jax.Array]:
    """Shares of a batch, as scalars.

    Args:
      views: by text.
      more: also what takes time.

    Returns:
      `empty_{text}`: of the texts, those without a weight in any sparse view; and with
      `more`, `unused_{text}_{view}`: of the vocabulary, terms that no text has a weight
      for.
    """
    found = {}
    for text, by_view in views.items():
        sparse = {n: v for n, v in by_view.items() if isinstance(v, reps.SPARSE)}
        if len(sparse) < len(by_view):
            continue
        sums_B = sum(abs(view.row_sums()) for view in sparse.values())
        found[f"{_EMPTY}{text}"] = (sums_B == 0).mean(dtype=jnp.float32)
        for name, view in sparse.items() if more else ():
            unused_V = view.column_means() == 0
            found[f"unused_{text}_{name}"] = unused_V.mean(dtype=jnp.float32)
    return found


@dataclasses.dataclass
class Watch:
    """Counts the steps in which all vectors of a text are empty.

    Attributes:
      empty: steps in a row, by text.
    """

    empty: dict[str, int] = dataclasses.field(default_factory=dict)

    def look(self, numbers: dict[str, float]) -> str:
        """Why the run is lost, or nothing.

        Args:
          numbers: of the next step; shares of empty vectors that are 0 are taken out,
            since they say nothing.
        """
        for name in [name for name in numbers if name.startswith(_EMPTY)]:
            text, share = name.removeprefix(_EMPTY), numbers[name]
            self.empty[text] = self.empty.get(text, 0) + 1 if share == 1 else 0
            if not share:
                del numbers[name]
            if self.empty[text] == _PATIENCE:
                return (
                    f"every {text} vector has been empty for {_PATIENCE} steps: the"
                    " model has collapsed, and no gradient is left to bring it back."
                    f" Lower config.regularizer.{text} or config.optim.lr, lengthen the"
                    " warm-up of either, or set config.regularizer.anti_zero."
                )
        return ""
