"""The tool in a process of its own, started as ``python -I -S _process.py EXTENSION RUNTIME ARGUMENTS…`` without the package around it."""

import signal
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location


def main() -> int:
    """Serves as an engine, or carries out a command line."""
    # Ctrl-C ends it, as it ends any child.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program, extension, runtime, *words = sys.argv
    spec = spec_from_file_location("_native", extension, loader=ExtensionFileLoader("_native", extension))
    assert spec is not None and spec.loader is not None
    native = module_from_spec(spec)
    spec.loader.exec_module(native)
    if words == ["__engine"]:
        return int(native.engine_child())
    native.prefer(runtime or None)
    return int(native.main(["ancre-rewrite", *words], (sys.executable, ["-I", "-S", program, extension, runtime])))


if __name__ == "__main__":
    sys.exit(main())
