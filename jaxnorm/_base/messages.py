"""Errors in the user's words: the name of what the user called, and its names of the options.

A layer calls functions, and functions call each other. The first of them enters `calling`. Inside, `error`
begins with its name, and `option` translates an option of a function to the option of the layer.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


class Caller(NamedTuple):
    """What the user called."""

    name: str
    words: Mapping[str, str]  # the function's name of an option: the user's


_NOBODY = Caller("jaxnorm", {})
_caller: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


@contextmanager
def calling(name: str, words: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Inside, errors speak of `name` and in these words; inside another call they speak of that one."""
    if _caller.get() is not _NOBODY:
        yield
        return
    token = _caller.set(Caller(name, words))
    try:
        yield
    finally:
        _caller.reset(token)


def error(kind: type[E], problem: str, remedy: str) -> E:
    """An error of that kind, `caller: problem; remedy.`, where the caller is what the user called.

    Args:
      kind: ValueError, for example.
      problem: what was expected, and what came.
      remedy: what to do.
    """
    return kind(f"{caller()}: {problem}; {remedy}.")


def caller() -> str:
    """The name of what the user called."""
    return _caller.get().name


def option(name: str) -> str:
    """The user's word for the option that the functions call `name`."""
    return _caller.get().words.get(name, name)


# ---------------------------------------------------------------- words of other frameworks

_OLD = "the fraction of the OLD value that is kept: 1 - PyTorch's momentum"
_MASK = "a boolean mask, or weights >= 0"
_STORED = "True to evaluate by the stored statistics"
_BATCH = "True to train by the batch's statistics"
_FEATURES = "the axes that have a scale and statistics of their own"

# A word that other frameworks have, or jaxnorm elsewhere, and jaxnorm's words for it, each with what to know
# about it. The first that the called function or layer has is meant; `a and b` are two that go together.
_WORDS: dict[str, dict[str, str]] = {
    "momentum": {"decay": _OLD},
    "decay": {"momentum": _OLD},
    "decay_rate": {"decay": _OLD, "momentum": _OLD},
    "eps": {"epsilon": ""},
    "variance_epsilon": {"epsilon": ""},
    "mask": {"where": _MASK},
    "weights": {"where": _MASK},
    "sample_weight": {"where": _MASK, "weights": ""},
    "where": {"mask": "or, for real weights, `weights`"},
    "weight": {"scale": ""},
    "gamma": {"scale": ""},
    "beta": {"bias": ""},
    "offset": {"bias": ""},
    "shift": {"bias": ""},
    "scale": {"use_scale": "True or False"},
    "bias": {"use_bias": "True or False"},
    "center": {"use_bias": ""},
    "create_scale": {"use_scale": ""},
    "create_offset": {"use_bias": ""},
    "affine": {"use_scale and use_bias": "", "use_scale": ""},
    "elementwise_affine": {"use_scale and use_bias": "", "use_scale": ""},
    "track_running_stats": {"track_stats": "", "update_stats": "False to keep the statistics as they are"},
    "running_mean": {"stats": "Moments(mean, var, weight)"},
    "running_var": {"stats": "Moments(mean, var, weight)"},
    "running_stats": {"stats": ""},
    "state": {"stats": ""},
    "training": {"train": "", "use_running_average": f"the opposite: {_STORED}"},
    "is_training": {"train": "", "use_running_average": f"the opposite: {_STORED}"},
    "train": {"use_running_average": f"the opposite: {_STORED}"},
    "inference": {"train": f"the opposite: {_BATCH}", "use_running_average": ""},
    "use_running_average": {"train": f"the opposite: {_BATCH}"},
    "dim": {"axis": "", "reduction_axes": "", "feature_axis": _FEATURES, "feature_axes": _FEATURES},
    "axes": {"axis": "", "reduction_axes": "", "feature_axis": _FEATURES, "feature_axes": _FEATURES},
    "axis": {"reduction_axes": "", "feature_axis": _FEATURES, "feature_axes": _FEATURES},
    "normalized_shape": {"axis": "the axes themselves", "num_features": "", "reduction_axes": "the axes"},
    "reduction_axes": {"axis": ""},
    "feature_axis": {"feature_axes": "", "axis": _FEATURES},
    "feature_axes": {"feature_axis": "", "axis": _FEATURES},
    "channel_axis": {"feature_axis": "", "feature_axes": "", "axis": _FEATURES},
    "keepdim": {"keepdims": ""},
    "keep_dims": {"keepdims": ""},
    "groups": {"num_groups": ""},
    "num_channels": {"num_features": ""},
    "channels": {"num_features": ""},
    "virtual_batch_size": {"num_ghosts": "the number of parts, not their size"},
    "axis_names": {"axis_name": "a name or a tuple of names"},
    "cross_replica_axis": {"axis_name": ""},
    "n_power_iterations": {"n_steps": ""},
    "num_steps": {"n_steps": ""},
    "p": {"ord": ""},
    "input": {"x": ""},
    "inputs": {"x": ""},
}


def translate(raised: TypeError, *signatures: inspect.Signature) -> None:
    """Raise an error that names our option, if `raised` is Python's of a keyword of another framework.

    Args:
      raised: the error.
      signatures: of what was called; of a layer, its constructor and its call.
    """
    found = re.search(r"got (?:an unexpected|multiple values for) keyword argument '(\w+)'", str(raised))
    word = found.group(1) if found else ""
    taken = {p.name: p.kind for signature in signatures for p in signature.parameters.values()}
    candidates = _WORDS.get(word, {})
    fitting = [ours for ours in candidates if taken.keys() >= set(ours.split(" and "))]
    if inspect.Parameter.VAR_KEYWORD in taken.values():  # which may take any of them
        fitting += candidates
    if fitting:
        listed, remark = fitting[0].replace(" and ", "` and `"), candidates[fitting[0]]
        verb = "are" if " and " in fitting[0] else "is"
        remark = f", {remark}" if remark else ""
        raise error(TypeError, f"{word} is not an option", f"jaxnorm's {verb} `{listed}`{remark}") from None


def public(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, for users: errors name it, and say what another framework's keyword is called here."""
    name, signature = function.__name__, inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        with calling(name):
            try:
                return function(*args, **options)
            except TypeError as raised:
                translate(raised, signature)
                raise

    return call


class Named:
    """A base of layers whose constructor and call say what another framework's keyword is called here."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__init__", "__call__"):
            owner = next((base for base in cls.__mro__ if name in vars(base)), object)
            method = vars(owner)[name] if owner is not object else None
            if method is not None and not hasattr(method, "says_ours"):
                setattr(cls, name, _saying_ours(method))


def _saying_ours(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Named, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except TypeError as raised:
            layer = type(self)
            made = getattr(layer, "__signature__", None) or inspect.signature(layer.__init__)
            with calling(layer.__name__):
                translate(raised, made, inspect.signature(layer.__call__))
            raise

    call.__dict__["says_ours"] = True
    return call
