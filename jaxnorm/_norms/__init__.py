"""The norms: each is a choice of Moments. A new one is a file or a function here, of a few lines.

sample         layer, RMS, group and instance norm: every sample by its own moments
arguments      the arguments that norms have in common: `shared` hands them on, `arguments` checks them
instances      instance norm with running statistics
batch          batch norm, and what all norms with a state have in common: `trained_or_evaluated`
renorm         batch renorm and ghost batch norm: small batches
microbatches   an average that takes the moments of several batches at once
banks          one state for every domain or time step; a state blended with the batch
switchable     a learned mixture of three moments
whitening      a covariance instead of variances
roots          inverse square roots of covariances
conditional    scale and bias by a label, a style, a map
transformers   gated, partial and query-key RMS norm, and what stands in for a norm
responses      a response divided by a norm of its neighbours
evonorm        an activation and its normalizer in one formula
inputs         series, observations, targets
lengths        vectors of a given length
weights        weights normalized like activations
spectral       weights by their largest singular value
trees          a function over the chosen leaves of a tree of parameters
groups         groups of channels that may be spread over devices
"""
