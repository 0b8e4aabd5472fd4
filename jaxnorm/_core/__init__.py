"""The mathematics. Read `normalize` first: it is the formula of every norm, and JAX differentiates it.

types           Moments: mean, variance and weight of a sample
reduction       what statistics are taken over: axes, groups of channels, devices
shift           a value near the mean, from a thin slice of x
statistics      the sums of x - shift and of its square, and the moments that they make
normalize       y by its own moments or by given ones: one formula, no derivative rule
recompute       what reverse mode keeps and what it recomputes; derivatives at corners
moments         moments, merge, combine, initial_stats (public)
average         ema: how statistics are remembered (public)
standardize     standardize and its inverse (public)
"""
