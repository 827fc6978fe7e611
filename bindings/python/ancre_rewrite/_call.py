"""From Python's calls to the tool's command lines and back."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from . import _native, _process
from ._errors import CheckFailed, Error, InputError, Notice

if TYPE_CHECKING:
    import onnx

#: A model: its file, the bytes of one, or onnx's message.
Model = Union[str, "os.PathLike[str]", bytes, "onnx.ModelProto"]


def interpreter() -> Optional[Tuple[str, List[str]]]:
    """The program that is the tool: what runs apart from this process (engines, ``verify --pairs``) is started by it. A host that
    embeds Python may have no interpreter; engines then run inside it."""
    if not sys.executable:
        return None
    # Without site-packages and the user's settings: that starts faster and takes nothing from the directory it is started in.
    return sys.executable, ["-I", "-S", str(_process.__file__), str(_native.__file__), _runtime() or ""]


def _runtime() -> Optional[str]:
    """The folder of the package ``onnxruntime`` of this environment."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return folders[0] if folders else None


class _Option(NamedTuple):
    takes_value: bool
    may_be_bare: bool
    repeats: bool
    help: str


#: A message of more bytes is written with its data beside it; one file holds 2 GiB.
LARGE = 1 << 30

# What a call decides by itself: reports are objects, and outputs are arguments of the functions.
_OURS = {"json", "quiet", "verbose", "out"}


@functools.lru_cache(maxsize=None)
def options(verb: Optional[str]) -> Mapping[str, _Option]:
    """The options of a verb, by their names in Python; of the main job without one."""
    listed = {name.replace("-", "_"): _Option(*rest) for name, *rest in _native.options(verb)}  # type: ignore[arg-type]
    return {name: option for name, option in listed.items() if name not in _OURS}


class Workspace:
    """A directory for what the tool is to read from files, and for what it writes where no place was named."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ancre-rewrite-"))
        # Not a TemporaryDirectory, which warns when it is not closed by hand.
        weakref.finalize(self, shutil.rmtree, str(self.path), ignore_errors=True)
        self._count = 0

    def file(self, suffix: str) -> Path:
        """A file that is not there yet."""
        self._count += 1
        return self.path / f"{self._count}{suffix}"

    def model(self, model: Model, name: str = "model") -> str:
        """The file of a model."""
        if isinstance(model, (str, os.PathLike)):
            return os.fspath(model)
        folder = self.file("")
        folder.mkdir()
        path = folder / f"{name}.onnx"
        if isinstance(model, (bytes, bytearray, memoryview)):
            path.write_bytes(model)
        elif hasattr(model, "SerializeToString") and hasattr(model, "graph"):
            import onnx

            large = model.ByteSize() > LARGE
            if large:
                # Writing data beside a message takes it out of the message.
                copy = onnx.ModelProto()
                copy.CopyFrom(model)
                model = copy
            onnx.save_model(model, str(path), save_as_external_data=large)
        else:
            raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
        return str(path)

    def word(self, value: Any) -> str:
        """A value of an option as a word of the command line. An array becomes a file."""
        if isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if hasattr(value, "shape") and len(value.shape) > 0:
            import numpy

            path = self.file(".npy")
            numpy.save(path, numpy.asarray(value))
            return str(path)
        return str(value.item() if hasattr(value, "item") else value)

    def words(self, function: str, verb: Optional[str], given: Mapping[str, Any]) -> List[str]:
        """Keyword arguments as words of a command line."""
        known, words = options(verb), []
        for name, value in given.items():
            option = known.get(name)
            if option is None:
                close = difflib.get_close_matches(name, known, n=3)
                meant = f"; did you mean {' or '.join(f'{c}=' for c in close)}?" if close else ""
                raise TypeError(f"{function}() got an unexpected option '{name}'{meant}")
            flag = "--" + name.replace("_", "-")
            if value is None or value is False:
                continue
            if value is True:
                if option.takes_value and not option.may_be_bare:
                    raise TypeError(f"{function}(): {name} wants a value: {option.help}")
                words.append(flag)
                continue
            if not option.takes_value:
                raise TypeError(f"{function}(): {name} is True or False, not {value!r}")
            if isinstance(value, Mapping):
                value = [f"{key}={self.word(v)}" for key, v in value.items()]
            elif isinstance(value, (list, tuple, set, frozenset, range)):
                value = [self.word(v) for v in value]
                value = value if option.repeats else [",".join(value)]
            else:
                value = [self.word(value)]
            words += [f"{flag}={v}" for v in value]
        return words


def call(verb: Optional[str], words: List[str]) -> Tuple[str, int]:
    """Carries out a command line: what it would print, and its exit status."""
    _native.prefer(_runtime())
    line = ["ancre-rewrite"] + ([verb] if verb else []) + words
    text, status, notices, fault = _native.call(line, interpreter())
    for notice in notices:
        warnings.warn(notice, Notice, stacklevel=4)
    if fault is not None:
        raise error(fault)
    return text, status


def report(verb: Optional[str], words: List[str]) -> Tuple[Dict[str, Any], int]:
    """The report of a command line, and its exit status."""
    text, status = call(verb, words + ["--json"])
    return json.loads(text), status


def carry_out_apart(verb: str, words: List[str], quiet: bool) -> None:
    """Carries out a command line in a process of its own, which stops when the wait for it is ended: for what takes long and watches for
    Ctrl-C by itself. Its progress goes to standard error, what it would print nowhere."""
    program = interpreter()
    if program is None:
        raise Error(f"{verb} needs a Python interpreter to start")
    line = [program[0], *program[1], verb, *words, *(["--quiet"] if quiet else [])]
    # In a session of its own: a terminal's Ctrl-C beside the request to stop would end it at once.
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    assert process.stderr is not None
    said = ""
    try:
        for text in process.stderr:
            if said or text.startswith("error: "):
                said += text
            else:
                sys.stderr.write(text)
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status == 130:
        raise KeyboardInterrupt
    if status != 0:
        what, _, help = said.split("\n\nFor more information")[0].strip().partition("\n  try: ")
        raise error((status, what.replace("error: ", "", 1), help or None, None, None, None))


def error(fault: Tuple[int, str, Optional[str], Optional[str], Optional[str], Optional[str]]) -> Error:
    """The exception of a fault."""
    status, what, help, file, node, operator = fault
    kind = {1: CheckFailed, 2: InputError}.get(status, Error)
    where = Path(file) if file else None
    return kind(what, status=status, help=help, file=where, node=node, operator=operator)


def main() -> int:
    """The command line's ``ancre-rewrite``."""
    import signal

    # Python's own handler would wait for the call to end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _native.prefer(_runtime())
    return _native.main(["ancre-rewrite"] + sys.argv[1:], interpreter())
