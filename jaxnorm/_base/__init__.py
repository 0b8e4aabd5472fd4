"""What every other room stands on, and no mathematics of norms.

arithmetic    float32 or wider, real and complex alike; sums and products in which a term may be absent
axes          checks of axes, groups of channels and sizes
checks        checks of arguments, at trace time: caller, invariant, what came, remedy
collectives   sums over named axes in one psum; axis names that may be missing
compilation   an eager call of a public function, or of an nnx layer, is one compiled program
exported      states as arguments and results of functions that `jax.export` writes to a file
messages      the words of an error: those of what the user called
options       checks of the values of options: epsilon, decay, train
sharding      arrays on a mesh whose axes are Explicit
"""
