"""After training: statistics of the whole population, and norms that become part of the layers beside them.

These are functions of arrays and of Moments. `jaxnorm.linen` and `jaxnorm.nnx` have each as one call for a
whole model, or as an option of a layer. `accumulate` is in `jaxnorm._norms.microbatches`, as the layers'
`every_k` is made of it.

merging        the moments of many batches, merged in pairs
fold           a norm as part of the kernel and the bias of the layer before it, or after it
pairs          a norm and the layers beside it as a model stores them: what is behind linen's and nnx's `fold`
refusals       why a norm cannot become part of a layer
"""

from jaxnorm._norms.microbatches import Pending as Pending
from jaxnorm._norms.microbatches import accumulate as accumulate
from jaxnorm._norms.microbatches import initial_pending as initial_pending
from jaxnorm.population.fold import fold_batch_norm as fold_batch_norm
from jaxnorm.population.fold import fold_into_next as fold_into_next
from jaxnorm.population.fold import fold_scale as fold_scale
from jaxnorm.population.merging import merge_batches as merge_batches
