"""After training: statistics of the whole population, and norms that become part of the layers beside them.

These are functions of arrays and of Moments. `jaxnorm.linen` and `jaxnorm.nnx` have each as one call for a
whole model.

fold           a norm as part of the kernel and the bias of the layer before it, or after it
pairs          a norm and the layers beside it as a model stores them: what is behind linen's and nnx's `fold`
refusals       why a norm cannot become part of a layer
"""

from jaxnorm.population.fold import fold_batch_norm as fold_batch_norm
from jaxnorm.population.fold import fold_into_next as fold_into_next
from jaxnorm.population.fold import fold_scale as fold_scale
