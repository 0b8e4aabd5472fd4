"""After training: statistics of the whole population.

These are functions of arrays and of Moments. `jaxnorm.linen` and `jaxnorm.nnx` have calls for whole models.

merging        the moments of many batches, merged in pairs
"""

from jaxnorm.population.merging import merge_batches as merge_batches
