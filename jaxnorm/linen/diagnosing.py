"""What the statistics of a linen model say."""

from typing import Any

from flax import linen as nn
from flax.core import DenyList, meta

from jaxnorm._layers import watching
from jaxnorm.monitor.report import Report, of_calls


def diagnose(model: nn.Module, variables: Any, batch: Any, **apply_kwargs: Any) -> Report:
    """A report of every norm: the batch's statistics against the stored ones.

    Every norm with statistics normalizes by the batch's, whatever mode the model is in, unless it is frozen,
    and nothing changes. Values come from inside of jit, scan and remat, too. Of norms that the batch does not
    reach, and of Flax's own, what is stored is reported.

    Args:
      model: a linen module.
      variables: as `init` returned them.
      batch: an array, or a tuple of the model's positional arguments. A good one has 32 samples or more.
      apply_kwargs: of `model.apply`, the model's own and `rngs`, `method` and the like.

    Returns:
      A `jaxnorm.monitor.Report`: `findings`, `norms`, `table()` and `plot(path)`.

    Raises:
      ValueError: the model has no norm.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> norm = jn.BatchNorm(use_running_average=True, momentum=0.1)
    >>> report = jn.diagnose(norm, norm.init(jax.random.key(0), x), x)
    >>> [finding.kind for finding in report.findings]
    ['never_updated', 'momentum']
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    with watching.watching() as told:
        model.apply(variables, *args, **{"mutable": DenyList("params"), **apply_kwargs})
    return of_calls(told, meta.unbox(variables))
