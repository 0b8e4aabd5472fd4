"""What makes XLA need few reads of x. Nothing here changes a number by more than a rounding.

reads     one read of x after another, told apart for XLA:CPU; small arrays that are computed once
guess     sums about the running mean, which a TPU tries first

The tricks. Each figure is measured by the command beside it, without the trick and with it. A trick that buys less than
5 % of a step's time on its backend, or less than 0.15 passes over x, is deleted.

| trick | where | on | buys | measured by | may go when |
|---|---|---|---|---|---|
| barriers tell reads apart | reads.Reads, copies | CPU | temp of a bf16 step 4 to 6 x -> 0.03 x | tests/test_compiled.py | XLA:CPU fuses two sums of one array |
| cotangents of x are joined before they are rounded | reads.join | CPU | temp 2 x in bf16; dx rounded once | tests/test_compiled.py | the same |
| small arrays behind a reduction | reads.materialize | CPU | batch norm's bf16 step 0.46 -> 0.25 of Flax's time | benchmarks.cpu | XLA:CPU does not repeat them for every element |
| small arrays behind a barrier | reads.materialize | GPU | the shift is one number in all kernels: means 2.6e-7 off -> exact | tests/test_accuracy.py on a GPU | XLA:GPU computes a shared value once |
| sums about the running mean | guess | TPU | convolution, batch norm, relu: 10.03 -> 9.01 passes | benchmarks.passes | the slice mean is taken in the epilogue, too |
| plain sums with masked elements filled in | _core/statistics | CPU | var of 4096 masked points 2e-5 -> 1e-7 | tests/test_accuracy.py | XLA:CPU adds up products in blocks |
"""
