"""What only a part of the monitor needs, imported when it is used."""

import importlib
from typing import Any


def imported(module: str, what: str) -> Any:
    """The module.

    Args:
      module: its name.
      what: what needs it, which an error speaks of.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ImportError(
            f"{what}: {package} is not installed; run pip install 'jaxnorm[monitor]'."
        ) from None
