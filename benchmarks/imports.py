"""What `import jaxnorm` takes beyond `import jax`, in milliseconds: medians over fresh processes.

python -m benchmarks.imports
"""

import os
import statistics
import subprocess
import sys
import tempfile

PROCESSES = 9
# CPU time beside the time by the clock: other programs on the machine change it less.
PROGRAM = """
import time
import jax
clock, cpu = time.perf_counter(), time.process_time()
import {module}
print(1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu))
"""
MODULES = "jaxnorm", "jaxnorm.population", "jaxnorm.linen", "jaxnorm.nnx"


def once(module: str, cache: str) -> list[float]:
    """Milliseconds by the clock, and of the CPU, in a fresh process.

    Args:
      module: to import after jax.
      cache: a folder for the bytecode, which an installed package has beside its files.
    """
    command = [sys.executable, "-X", f"pycache_prefix={cache}", "-c", PROGRAM.format(module=module)]
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    print(f"{'import, beyond jax':20s} {'ms':>8s} {'CPU ms':>8s}")
    with tempfile.TemporaryDirectory() as cache:
        for module in MODULES:
            once(module, cache)  # writes the bytecode
            samples = [once(module, cache) for _ in range(PROCESSES)]
            clock, cpu = map(statistics.median, zip(*samples, strict=True))
            print(f"{module:20s} {clock:8.1f} {cpu:8.1f}")


if __name__ == "__main__":
    main()
