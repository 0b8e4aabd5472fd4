"""What the statistics of an nnx model say."""

from typing import Any

from flax import nnx

from jaxnorm._layers import watching
from jaxnorm.monitor.report import Report, of_calls
from jaxnorm.nnx.freezing import _modules, _name


def diagnose(model: nnx.Module, batch: Any, **call_kwargs: Any) -> Report:
    """A report of every norm: the batch's statistics against the stored ones.

    Every norm with statistics normalizes by the batch's, in train() and eval() alike, unless it is frozen, and
    nothing of the model changes. Values come from inside of jit, scan and remat, too. Of norms that the batch
    does not reach, and of Flax's own, what is stored is reported.

    Args:
      model: an nnx module, which is called.
      batch: an array, or a tuple of the model's positional arguments. A good one has 32 samples or more.
      call_kwargs: of the call.

    Returns:
      A `jaxnorm.monitor.Report`: `findings`, `norms`, `table()` and `plot(path)`.

    Raises:
      ValueError: the model has no norm.
      TypeError: the model is no module.

    >>> import jax
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> report = jn.diagnose(jn.BatchNorm(4, momentum=0.1, rngs=nnx.Rngs(0)), x)
    >>> [finding.kind for finding in report.findings]
    ['never_updated', 'momentum']
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    _modules("diagnose", model)
    copy = nnx.clone(model)
    for path, module in _modules("diagnose", copy):
        module.watched_as = _name(path)
    with watching.watching() as told:
        copy(*args, **call_kwargs)
    return of_calls(told, nnx.to_pure_dict(nnx.state(model)))
