"""What makes XLA need few reads of x. Nothing here changes a number by more than a rounding.

reads     one read of x after another, told apart for XLA:CPU; small arrays that are computed once
guess     sums about the running mean, which a TPU tries first

The tricks. A trick that buys less than 5 % of a step's time on its backend, or less than 0.15 passes over x,
is deleted. `passes` is `python -m benchmarks.passes`, `cpu` is `python -m benchmarks.cpu`.

Barriers tell reads apart: `reads.Reads`, `reads.copies`.
    Buys, on a CPU: a bfloat16 step allocates 0.03 of x, not 4 to 6 times x (tests/compiled/test_compiled.py).
    May go when XLA:CPU fuses two sums of one array.
Cotangents of x are added before they are rounded: `reads.join`.
    Buys, on a CPU: 2 x of memory in bfloat16; everywhere, dx is rounded once (tests/core/test_accuracy.py).
    May go when XLA:CPU fuses two sums of one array.
Small arrays behind a reduction: `reads.materialize`, on a CPU.
    Buys: batch norm's bfloat16 step takes 0.25 of Flax's time, not 0.46 (cpu).
    May go when XLA:CPU's loops do not repeat a small array for every element.
Small arrays behind a barrier: `reads.materialize`, elsewhere.
    Buys, on a GPU: the shift is one number in all kernels; means were off by 2.6e-7 of themselves.
    May go when XLA:GPU computes a shared value once.
Sums about the running mean: `guess`.
    Buys, on a TPU: a block of convolution, batch norm and relu takes 9.01 passes, not 10.03 (passes).
    May go when a TPU takes the mean of a slice in the convolution's epilogue, too.
Masked elements are filled in, and the sums are plain: `_core.statistics`.
    Buys, on a CPU: the variance of 4096 masked points is right to 1e-7, not to 2e-5
    (tests/core/test_accuracy.py).
    May go when XLA:CPU adds up products in blocks, as it does plain sums.
"""
