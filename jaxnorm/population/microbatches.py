"""Microbatches for users of the pure functions; the layers have the option `every_k`."""

from jaxnorm._norms.microbatches import Pending as Pending
from jaxnorm._norms.microbatches import accumulate as accumulate
from jaxnorm._norms.microbatches import initial_pending as initial_pending
