"""After training: statistics of the whole population, and norms that become part of the layers beside them.

These are functions of arrays and of Moments. `jaxnorm.linen` and `jaxnorm.nnx` have each as one call for a
whole model, or as an option of a layer.

`accumulate` is in `jaxnorm._norms.microbatches`, as the layers' `every_k` is made of it.
"""

from jaxnorm._norms.microbatches import Pending as Pending
from jaxnorm._norms.microbatches import accumulate as accumulate
from jaxnorm._norms.microbatches import initial_pending as initial_pending
