"""What the statistics of a linen model say."""

from typing import Any

from flax import linen as nn
from flax.core import DenyList, meta
from flax.core.scope import union_filters

from jaxnorm._base.messages import calling
from jaxnorm._layers import recalibration, state, watching
from jaxnorm.linen.freezing import check_dict
from jaxnorm.linen.from_flax import in_place_of_flax
from jaxnorm.linen.recalibration import _unboxed, _with
from jaxnorm.monitor.report import Report, of_calls


def diagnose(model: nn.Module, variables: Any, batch: Any, **apply_kwargs: Any) -> Report:
    """A report of every norm: the batch's statistics against the stored ones.

    Norms with statistics normalize by the batch's meanwhile, whatever mode the model chooses, unless they
    are frozen. The variables stay as they are. Norms are found inside of jit, scan and remat, too; Flax's
    own run as ours. Of a norm that the batch does not reach, what is stored is reported.

    Args:
      model: a linen module.
      variables: as `init` returned them.
      batch: an array, or a tuple of the model's positional arguments. A good one has 32 samples or more.
      apply_kwargs: of `model.apply`, the model's own and `rngs`, `method` and the like.

    Returns:
      A `jaxnorm.monitor.Report`: `findings`, `norms`, `table()` and `plot(path)`.

    Raises:
      ValueError: the model has no norm.
      TypeError: variables is no dict.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> norm = jn.BatchNorm(use_running_average=True, momentum=0.1)
    >>> report = jn.diagnose(norm, norm.init(jax.random.key(0), x), x)
    >>> [finding.kind for finding in report.findings]
    ['never_updated', 'momentum']
    """
    with calling("diagnose"):
        check_dict("variables", variables, "the variables that init returned")
    args = batch if isinstance(batch, tuple) else (batch,)
    stats = _unboxed(variables.get("batch_stats", {}))
    frozen = {path for path, norm in stats.items() if "frozen" in norm}
    marked = {path: recalibration.marked(norm, False, "frozen") for path, norm in stats.items()}
    asked = {**variables, "batch_stats": _with(variables["batch_stats"], marked)} if stats else variables
    mutable = union_filters(apply_kwargs.pop("mutable", DenyList("params")), "batch_stats")
    with watching.watching() as told, in_place_of_flax():
        _, after = model.apply(asked, *args, mutable=mutable, **apply_kwargs)
    measured = _unboxed(after.get("batch_stats", {}))
    batches = {path: measured[path][state.SAMPLE].stats for path in stats}
    return of_calls(told, meta.unbox(variables), batches, frozen)
