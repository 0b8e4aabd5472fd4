"""Population statistics, from training to serving: pure functions over arrays and Moments.

microbatches   the moments of several batches enter an average once
"""

from jaxnorm.population.microbatches import Pending as Pending
from jaxnorm.population.microbatches import accumulate as accumulate
from jaxnorm.population.microbatches import initial_pending as initial_pending
