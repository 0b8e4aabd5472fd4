"""What the statistics of an nnx model say."""

from typing import Any

from flax import nnx

from jaxnorm._base.messages import calling
from jaxnorm._layers import recalibration, state, watching
from jaxnorm.monitor.report import Report, of_calls
from jaxnorm.nnx.batch import MARK
from jaxnorm.nnx.freezing import _modules
from jaxnorm.nnx.from_flax import convert
from jaxnorm.nnx.recalibration import _measurable, _store, _stored


def diagnose(model: nnx.Module, batch: Any, **call_kwargs: Any) -> Report:
    """A report of every norm: the batch's statistics against the stored ones.

    Norms with statistics normalize by the batch's meanwhile, in train() and eval() alike, unless they are
    frozen. The model stays as it is. Norms are found inside of jit, scan and remat, too; Flax's own run as
    ours. Of a norm that the batch does not reach, what is stored is reported.

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
    with calling("diagnose"):
        _modules(model)
    copy: Any = nnx.clone(model)
    convert(copy)
    modules: dict[str, Any] = {"/".join(map(str, keys)): module for keys, module in nnx.iter_modules(copy)}
    for path, module in modules.items():
        module.watched_as = path
    norms = {path: (layer, _stored(layer)) for path, layer in modules.items() if _measurable(layer)}
    frozen = {path for path, (layer, _) in norms.items() if hasattr(layer, MARK)}
    for layer, stored in norms.values():
        _store(layer, recalibration.marked(stored, False, MARK))
    with watching.watching() as told:
        copy(*args, **call_kwargs)
    batches = {path: _stored(layer)[state.SAMPLE].stats for path, (layer, _) in norms.items()}
    return of_calls(told, nnx.to_pure_dict(nnx.state(model)), batches, frozen)
