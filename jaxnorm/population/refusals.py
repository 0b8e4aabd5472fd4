"""Why a norm cannot become part of a layer: the errors of the models' `fold`, in terms of paths."""

import difflib
from collections.abc import Collection

from jaxnorm._base.messages import error


def no_such(kind: str, path: str, there: Collection[str]) -> ValueError:
    """The error for a path at which there is nothing.

    Args:
      kind: what was sought, "norm" or "layer".
      path: what the user gave.
      there: the paths of all that would do.
    """
    near = difflib.get_close_matches(path, there, n=3, cutoff=0.4) or sorted(there)[:8]
    remedy = f"there is: {', '.join(near)}" if near else "the model has none"
    return error(ValueError, f"there is no {kind} '{path}'", remedy)


def without_statistics(norm: str) -> ValueError:
    """The error for a norm without statistics that is to become part of the layer before it."""
    problem = f"norm '{norm}' keeps no statistics, without which it is not affine"
    remedy = 'only its scale and bias fold, into the layer after it: fold(..., into="next")'
    return error(ValueError, problem, remedy)


def without_bias(norm: str, layer: str) -> ValueError:
    """The error for a layer without a bias, after a norm that shifts."""
    problem = f"layer '{layer}' has no bias, which would hold the shift of norm '{norm}'"
    return error(ValueError, problem, "give the layer a bias, of zeros")


def no_batch_norm(norm: str, others: Collection[str], shapes: Collection[tuple[int, ...]]) -> ValueError:
    """The error for a norm of other variables than batch norm's: others by name, or of several shapes."""
    what = f"parameters {', '.join(others)}" if others else f"values of shapes {sorted(shapes)}"
    problem = f"norm '{norm}' has {what}, so that its evaluation is not that of one batch norm"
    return error(ValueError, problem, "fold batch norms")


def normalized_weights(layer: str, baked: str) -> ValueError:
    """The error for a layer in weight or spectral norm; `baked` is the call that takes it out."""
    problem = f"layer '{layer}' is wrapped in weight norm or spectral norm, which would undo a new length"
    return error(ValueError, problem, f"bake its weights first, by {baked}")


def other_norm(norm: str, kind: str) -> ValueError:
    """The error for a layer of a class that normalizes in another way."""
    problem = f"norm '{norm}' is a {kind}, whose evaluation is not that of batch norm"
    return error(ValueError, problem, "fold batch norms")


def unknown_layer(layer: str, kind: str) -> ValueError:
    """The error for a layer of a class with a call of its own."""
    problem = f"layer '{layer}' is a {kind}, with a call of its own that need not be linear in its kernel"
    return error(ValueError, problem, "fold its arrays with jaxnorm.population.fold_batch_norm")


def batch_statistics(norm: str, option: str, remedy: str) -> ValueError:
    """The error for a norm that does not evaluate by its stored statistics, by that option."""
    return error(ValueError, f"norm '{norm}' uses the batch's statistics, {option}", remedy)


def shared_module(path: str, places: Collection[str]) -> ValueError:
    """The error for a norm or a layer, or a variable of it, that is in the model at several places."""
    problem = f"'{path}' is in the model more than once, at {', '.join(sorted(places))}"
    return error(ValueError, problem, "the other uses would change, too: fold copies")


def padding(norm: str, layer: str, kind: str, what: str) -> ValueError:
    """The error for a convolution after a norm with a shift, of which it does not see the same everywhere.

    Args:
      norm, layer: their paths.
      kind: the layer's class.
      what: the option of the convolution by which it sees zeros, too.
    """
    problem = (
        f"layer '{layer}', a {kind} with {what}, sees zeros beside the output of norm '{norm}', so that "
    )
    problem += "the norm's shift is no bias at the edges"
    remedy = "fold into a Conv with padding='VALID', or into the layer before the norm"
    return error(ValueError, problem, remedy)


def masked(layer: str) -> ValueError:
    """The error for a convolution with a mask after a norm with a shift."""
    problem = f"layer '{layer}' has a mask, and the shift would be taken of its kernel without it"
    return error(ValueError, problem, "multiply the kernel by the mask, and set mask=None")


def between(norm: str, layers: Collection[str], into: str, outputs: int, inputs: int) -> ValueError:
    """The error for a norm and layers that are seen not to follow each other.

    Args:
      norm, layers, into: a pair.
      outputs, inputs: how often the first was called, and the second.
    """
    names = " and ".join(f"'{layer}'" for layer in layers)
    first, then = (f"layer {names}", f"norm '{norm}'")
    if into == "next":
        first, then = then, first
    problem = f"{then} takes something else than the output of {first}"
    if outputs != inputs:
        problem = f"{first} is called {outputs} times, and {then} {inputs} times"
    return error(ValueError, problem, "fold where nothing, as an activation, is between them")


def misfit(norm: str, layer: str, features: tuple[int, ...], kernel: tuple[int, ...]) -> ValueError:
    """The error for a norm and a layer whose sizes do not fit."""
    problem = (
        f"norm '{norm}' has features of shape {features}, which do not fit layer '{layer}' with a kernel "
    )
    remedy = (
        "pair layers that follow each other, or choose the kernel's axis of the norm's features, feature_axis"
    )
    return error(ValueError, f"{problem}of shape {kernel}", remedy)
