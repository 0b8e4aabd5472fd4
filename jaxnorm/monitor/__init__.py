"""What the statistics of norms say: a report of a model, of a checkpoint, and the measures beneath.

`jaxnorm.linen.diagnose(model, variables, batch)` and `jaxnorm.nnx.diagnose(model, batch)` return a `Report`,
and so does `read(checkpoint)`, which `python -m jaxnorm.monitor CHECKPOINT` prints. The measures are
functions of `Moments` and run under `jax.jit`. `report.table()` needs rich, `report.plot(path)` matplotlib,
and a checkpoint orbax: `pip install 'jaxnorm[monitor]'`. Where nobody asks, a model computes nothing more.

measures       shift, KL divergence, noise, and flags of channels, on Moments; from where on each is a finding
findings       one norm, its findings, and what to do
report         Report: all norms of a model, and the table
picture        the drawing
checkpoint     an orbax checkpoint
__main__       the command
extras         the packages that only a part needs
"""

from jaxnorm.monitor.checkpoint import read as read
from jaxnorm.monitor.findings import KINDS as KINDS
from jaxnorm.monitor.findings import Finding as Finding
from jaxnorm.monitor.findings import Norm as Norm
from jaxnorm.monitor.measures import Flags as Flags
from jaxnorm.monitor.measures import batches_held as batches_held
from jaxnorm.monitor.measures import divergence as divergence
from jaxnorm.monitor.measures import flags as flags
from jaxnorm.monitor.measures import shift as shift
from jaxnorm.monitor.measures import standard_errors as standard_errors
from jaxnorm.monitor.report import Report as Report
