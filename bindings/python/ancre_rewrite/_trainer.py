"""Training in the user's own ONNX Runtime: the loop around a training graph, whose state stays on the device."""

from __future__ import annotations

import html
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from . import _native, _verbs
from ._call import Model, Workspace, error
from ._errors import Error, InputError

if TYPE_CHECKING:
    import numpy
    import onnxruntime

#: The metadata of checkpoints, and of graphs that have a state.
_CHECKPOINT, _STATE, _OPTIMIZER, _LOSS = "ancre.train", "ancre.state", "ancre.optimizer", "ancre.loss"

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

#: Memory of the host in DLPack.
_HOST = 1


class Evaluation(NamedTuple):
    """What an evaluation of a batch gave."""

    loss: float
    #: The model's outputs, by name.
    outputs: Dict[str, "numpy.ndarray"]


class Trainer:
    """A training graph and its state in ONNX Runtime. Needs the packages ``onnxruntime`` and ``numpy`` (``ancre-rewrite[train]``).

        trainer = Trainer("m.ancre.train.onnx", "m.ancre.init.onnx", lr=1e-3)
        for batch in loader:
            loss = trainer.step(**batch)
        trainer.save("m.safetensors")

    ``init`` is what the state starts from: the init graph, a .safetensors file, or a dictionary of arrays. A graph that holds its state
    (``state="inline"``) needs none. Files that lie beside the training graph's under the tool's names need not be named.

    ``eval``, ``infer`` and ``forward`` are the graphs for :meth:`evaluate`, :meth:`predict` and :meth:`export`. ``providers`` are ONNX
    Runtime's, by default CUDA where the package has it, and the CPU. ``session_options`` are given to every session; without them only errors
    are logged, and memory patterns are off.
    """

    def __init__(
        self,
        training: Model,
        init: Union[None, Model, Mapping[str, Any]] = None,
        *,
        eval: Optional[Model] = None,
        infer: Optional[Model] = None,
        forward: Optional[Model] = None,
        lr: Optional[float] = None,
        providers: Optional[Sequence[Any]] = None,
        session_options: Optional["onnxruntime.SessionOptions"] = None,
    ) -> None:
        try:
            import numpy  # noqa: F401
            import onnxruntime
            import safetensors  # noqa: F401
        except ImportError as e:
            raise ImportError(f"Trainer needs another package: {e}; pip install 'ancre-rewrite[train]'", name=e.name) from e

        self._ort = onnxruntime
        self._space = Workspace()
        self._path = self._space.model(training, "model.ancre.train")
        if providers is None:
            there = onnxruntime.get_available_providers()
            providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in there]
        if session_options is None:
            session_options = onnxruntime.SessionOptions()
            # A graph that holds its state is warned of, once for each tensor.
            session_options.log_severity_level = 3
            # Else the memory of a step's activations is there twice.
            session_options.enable_mem_pattern = False
        self._providers, self._options = list(providers), session_options
        #: The learning rate of steps that are given none.
        self.lr = lr
        self._train = self._open(self._path)
        metadata = self._train.session.get_modelmeta().custom_metadata_map
        if _STATE not in metadata or _OPTIMIZER not in metadata:
            raise InputError(f"{self._path}: is no training graph: it lacks the metadata {_STATE} or {_OPTIMIZER}")
        self._records: List[Dict[str, Any]] = json.loads(metadata[_STATE])
        self._lr_name: str = json.loads(metadata[_OPTIMIZER]).get("lr") or "lr"
        self._device = self._train.device()
        self._beside = {
            "eval": self._given(eval, ".eval.onnx"),
            "infer": self._given(infer, ".infer.onnx"),
            "forward": self._given(forward, ".onnx"),
        }
        self._others: Dict[str, _Graph] = {}
        self._alive: Any = None
        self._is_whole = True
        #: The gradients' norm in the last step, before clipping.
        self.grad_norm: Optional[float] = None
        self._header: Dict[str, Any] = {}
        self._state: Dict[str, Any] = {}
        self._start(init)

    # What happens to batches

    def step(self, batch: Any = None, /, *more: Any, lr: Optional[float] = None, **named: Any) -> float:
        """One step of the optimiser; the loss comes back.

        The batch is given by the names of the graph's inputs, as keywords or as one dictionary, or in their order. Its values are numpy
        arrays, tensors of torch or of whatever else knows DLPack, or lists of numbers.
        """
        rate = self.lr if lr is None else lr
        if rate is None:
            raise TypeError("a learning rate is needed: step(..., lr=...) or Trainer(..., lr=...)")
        feeds = self._feeds(self._train, (batch, *more), named)
        feeds[self._lr_name] = self._to_ort(self._train, self._lr_name, rate)
        if not math.isfinite(rate):
            raise ValueError(f"the learning rate is {rate}, which would make the whole state so")
        loss, norm = self._train.own("loss"), self._train.own("grad_norm")
        read = [name for name in (loss, norm) if name in self._train.outputs]
        found = self._run(self._train, feeds, read, moves=True)
        self.grad_norm = float(found[norm]) if norm in found else None
        return float(found[loss])

    def evaluate(self, batch: Any = None, /, *more: Any, **named: Any) -> Evaluation:
        """The loss of a batch and the model's outputs, without dropout and updates."""
        graph = self._other("eval", "evaluation", "eval_graph=True")
        loss = graph.own("loss")
        found = self._run(graph, self._feeds(graph, (batch, *more), named), list(graph.outputs))
        return Evaluation(float(found.pop(loss)), found)

    def predict(self, batch: Any = None, /, *more: Any, **named: Any) -> Dict[str, "numpy.ndarray"]:
        """The model's outputs for its inputs, from the state as it is now."""
        graph = self._other("infer", "inference", "infer_graph=True")
        return self._run(graph, self._feeds(graph, (batch, *more), named), list(graph.outputs))

    # The state

    @property
    def steps(self) -> int:
        """Batches that went into the state."""
        return int(self._state["ancre.step"].numpy()) if "ancre.step" in self._state else 0

    def state_dict(self) -> Dict[str, "numpy.ndarray"]:
        """A copy of the whole state, by the names of the graph's inputs: parameters, router, moments, statistics, counter."""
        import numpy

        self._check_whole()
        return {name: numpy.array(value.numpy()) for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a whole state in. Raises :class:`ValueError` when a tensor is missing, unknown or of another shape."""
        wanted = {record["input"]: list(record["shape"]) for record in self._records}
        missing, strange = wanted.keys() - state.keys(), state.keys() - wanted.keys()
        if missing or strange:
            said = [f"{word} {_listed(names)}" for word, names in (("lacks", missing), ("has besides", strange)) if names]
            raise ValueError(f"the state {' and '.join(said)}")
        self._state = {name: self._held(name, state[name], shape) for name, shape in wanted.items()}
        self._is_whole = True

    def save(self, path: _verbs.Place) -> None:
        """Writes the state as a checkpoint, which ``load``, ``freeze``, ``topology`` and ``ancre-rewrite train --state`` take.
        The file appears whole or not at all."""
        from safetensors.numpy import save_file

        header = {**self._header, "step": self.steps}
        target = Path(path)
        with tempfile.TemporaryDirectory(prefix=".ancre-", dir=target.parent) as folder:
            whole = Path(folder, target.name)
            save_file(self.state_dict(), whole, metadata={_CHECKPOINT: json.dumps(header)})
            os.replace(whole, target)

    def load(self, path: _verbs.Place) -> None:
        """Goes on from a checkpoint of :meth:`save` or of ``ancre-rewrite train``."""
        from safetensors.numpy import load_file

        self.load_state_dict(load_file(path))

    def export(self, path: Optional[_verbs.Place] = None, **options: Any) -> _verbs.Frozen:
        """Freezes the state into the forward graph and writes the deployable model; options as :func:`freeze`."""
        forward = self._beside["forward"]
        if forward is None:
            raise InputError("export() needs the forward graph", help="Trainer(..., forward=...)")
        return _verbs.freeze(forward, self, path, **options)

    def topology(self, **options: Any) -> _verbs.Topology:
        """Which states the blocks read by now; options as :func:`topology`."""
        return _verbs.topology(self, **options)

    def __repr__(self) -> str:
        return f"Trainer({self._path!r}, {self.steps} steps, on {self._device[0]})"

    def _repr_html_(self) -> str:
        try:
            return self.topology()._repr_html_()
        except Error as e:
            return f"<pre>{html.escape(repr(self))}\n{html.escape(str(e))}</pre>"

    # Inside

    def _check_whole(self) -> None:
        if not self._is_whole:
            raise InputError("an earlier step failed half-way and left the state in pieces", help="load_state_dict() or load()")

    def _open(self, model: str) -> "_Graph":
        return _Graph(self._session(model, self._providers))

    def _session(self, model: str, providers: Sequence[Any]) -> "onnxruntime.InferenceSession":
        if not os.path.exists(model):
            raise InputError(f"{model}: there is no such file", file=Path(model))
        try:
            return self._ort.InferenceSession(model, self._options, providers=providers)
        except Exception as e:
            raise InputError(f"{model}: ONNX Runtime {self._ort.__version__} cannot open it: {e}", file=Path(model)) from e

    def _given(self, model: Optional[Model], suffix: str) -> Optional[str]:
        """The file of a graph that was given, or lies beside the training graph under the tool's name."""
        if model is not None:
            return self._space.model(model)
        stem = self._path[: -len(".train.onnx")] if self._path.endswith(".train.onnx") else None
        return stem + suffix if stem and os.path.exists(stem + suffix) else None

    def _other(self, kind: str, name: str, option: str) -> "_Graph":
        path = self._beside[kind]
        if path is None:
            raise InputError(f"there is no {name} graph", help=f"rewrite(..., {option}), then Trainer(..., {kind}=...)")
        if kind not in self._others:
            graph = self._open(path)
            if self._state.keys().isdisjoint(graph.inputs):
                raise InputError(f"{path}: takes no state of the training graph, so it would not show what was learned")
            if kind == "eval" and graph.own("loss") not in graph.outputs:
                raise InputError(f"{path}: has no output `loss`: it is no evaluation graph")
            self._others[kind] = graph
        return self._others[kind]

    def _start(self, init: Union[None, Model, Mapping[str, Any]]) -> None:
        """Fills the state: what the graph holds itself, and over it what `init` gives."""
        from safetensors.numpy import load

        content, fault = _native.start(self._path)
        if fault is not None:
            raise error(fault)
        self._header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][_CHECKPOINT])
        start: Dict[str, Any] = load(content)
        missing = [record["input"] for record in self._records if record["input"] not in start]
        if init is None and missing:
            init = self._given(None, ".init.onnx") or self._given(None, ".state.safetensors")
            if init is None:
                raise InputError(
                    f"{self._path}: does not hold what its state starts from ({_listed(missing)})",
                    help="Trainer(training, init) with the init graph or the state's file that was written beside it",
                )
        if isinstance(init, Mapping):
            start.update(init)
        elif isinstance(init, (str, os.PathLike)) and os.fspath(init).endswith(".safetensors"):
            start.update(load(Path(init).read_bytes()))
        elif init is not None:
            path = self._space.model(init)
            session = self._session(path, ["CPUExecutionProvider"])
            if session.get_inputs():
                taken = _listed(value.name for value in session.get_inputs())
                raise InputError(f"{path}: takes inputs ({taken}), which the graph of `--state init` does not")
            names = [output.name for output in session.get_outputs()]
            start.update(zip(names, session.run(names, {})))
        known = {record["input"] for record in self._records}
        self.load_state_dict({name: value for name, value in start.items() if name in known})

    def _held(self, name: str, value: Any, shape: List[int]) -> Any:
        """A state tensor on the device, in memory of its own, which steps may overwrite."""
        import numpy

        array = numpy.array(_on_host(value), order="C")
        dtype = _TYPES.get(self._train.inputs[name].type)
        if list(array.shape) != shape:
            raise ValueError(f"the state's `{name}` has shape {list(array.shape)}, the graph's has {shape}")
        if dtype is not None and array.dtype != dtype:
            raise ValueError(f"the state's `{name}` is of type {array.dtype}, the graph's is of {dtype}")
        return self._ort.OrtValue.ortvalue_from_numpy(array, *self._device)

    def _feeds(self, graph: "_Graph", batch: Tuple[Any, ...], named: Mapping[str, Any]) -> Dict[str, Any]:
        """A batch as ONNX Runtime's values by name."""
        wanted = [n for n in graph.required if n not in self._state and n != self._lr_name]
        given: Dict[str, Any] = {}
        if len(batch) == 1 and (batch[0] is None or hasattr(batch[0], "keys")):
            given.update(batch[0] or {})
        elif len(batch) > len(wanted):
            raise TypeError(f"{len(batch)} values are given, the graph takes {len(wanted)}: {_listed(wanted)}")
        else:
            given.update(zip(wanted, batch))
        given.update(named)
        free = set(graph.inputs) - self._state.keys() - {self._lr_name}
        missing, strange = [n for n in wanted if n not in given], [n for n in given if n not in free]
        if missing or strange:
            said = [f"{word} {_listed(names)}" for word, names in (("lacks", missing), ("has besides", strange)) if names]
            raise TypeError(f"the batch {' and '.join(said)}; the graph takes {_listed(free)}")
        feeds = {name: self._to_ort(graph, name, value) for name, value in given.items()}
        _check_sizes(graph, {name: value.shape() for name, value in feeds.items()})
        return feeds

    def _to_ort(self, graph: "_Graph", name: str, value: Any) -> Any:
        import numpy

        wanted = graph.inputs[name]
        dtype = _TYPES.get(wanted.type)
        if hasattr(value, "detach"):
            value = value.detach()
        elsewhere = hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] != _HOST
        if elsewhere and hasattr(self._ort.OrtValue, "from_dlpack"):
            found = self._ort.OrtValue.from_dlpack(value.contiguous() if hasattr(value, "contiguous") else value)
            if found.data_type() == wanted.type:
                _check_shape(name, found.shape(), wanted.shape)
                return found
        array = _on_host(value)
        if dtype is not None and array.dtype != dtype:
            if array.dtype == numpy.uint8 and dtype.startswith("float"):
                raise TypeError(f"`{name}` is {dtype} and bytes were given: scale them as the model expects them (x.astype('{dtype}') / 255)")
            if not numpy.can_cast(array.dtype, dtype, "same_kind"):
                raise TypeError(f"`{name}` is of type {array.dtype}, the graph takes {dtype}")
            array = array.astype(dtype)
        _check_shape(name, array.shape, wanted.shape)
        if array.dtype.kind in "iu":
            graph.check_classes(name, array)
        return self._ort.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(array).reshape(array.shape))

    def _run(self, graph: "_Graph", feeds: Mapping[str, Any], read: List[str], moves: bool = False) -> Dict[str, Any]:
        """One run with the state; the outputs to be read come back. The next state replaces the state where it `moves`."""
        self._check_whole()
        binding = graph.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._state.items():
            if name in graph.inputs:
                binding.bind_ortvalue_input(name, value)
        bound: List[Tuple[str, str]] = []
        in_place = False
        for record in self._records if moves else []:
            name, output = record["input"], record.get("output")
            if not output:
                continue
            if record.get("in_place"):
                in_place = True
                binding.bind_ortvalue_output(output, self._state[name])
                bound.append(("overwritten", name))
            else:
                binding.bind_output(output, *self._device)
                bound.append(("next", name))
        for name in read:
            binding.bind_output(name, "cpu")
            bound.append(("read", name))
        # An output that is an input as it came shares its memory, so what was fed stays until the next run.
        self._alive = feeds
        self._is_whole = not in_place
        graph.session.run_with_iobinding(binding)
        found: Dict[str, Any] = {}
        for (use, name), value in zip(bound, binding.get_outputs()):
            # What was overwritten stays the object that it is, since it holds the memory.
            if use == "next":
                self._state[name] = value
            elif use == "read":
                found[name] = value.numpy()
        # Else what comes out keeps the state before it alive.
        binding.clear_binding_inputs()
        self._is_whole = True
        return found


class _Graph:
    """A session and what it takes and gives."""

    def __init__(self, session: "onnxruntime.InferenceSession") -> None:
        self.session = session
        self.required = [value.name for value in session.get_inputs()]
        self.inputs = {value.name: value for value in [*session.get_inputs(), *session.get_overridable_initializers()]}
        shapes = {value.name: value.shape for value in session.get_outputs()}
        self.outputs = list(shapes)
        loss: Dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map.get(_LOSS, "{}"))
        #: The inputs that say what the outputs should be, each with its loss and the number of its classes, if that is fixed.
        self.targets: Dict[str, Tuple[Dict[str, Any], Any]] = {}
        for term in loss.get("terms", [loss]):
            axis, scores = term.get("class_axis"), shapes.get(term.get("output"), [])
            classes = scores[axis] if axis is not None and axis < len(scores) else None
            if term.get("target"):
                self.targets.setdefault(term["target"], (term, classes))

    def check_classes(self, name: str, labels: "numpy.ndarray") -> None:
        """Are labels classes of the model, or the one that is ignored? The graph takes -1 for the last class, and fails at others."""
        if name not in self.targets:
            return
        loss, classes = self.targets[name]
        counted = labels[labels != loss.get("ignore_index")]
        top = classes - 1 if isinstance(classes, int) else None
        wrong = counted[(counted < 0) | (counted > top)] if top is not None else counted[counted < 0]
        if wrong.size:
            ignored = "" if loss.get("ignore_index") is None else f", {loss['ignore_index']} for what is ignored"
            raise ValueError(f"`{name}` holds {wrong[0]}; classes are 0 to {'N - 1' if top is None else top}{ignored}")
        if not labels.size:
            raise ValueError(f"`{name}` is empty: a loss needs a sample")

    def own(self, name: str) -> str:
        """The name of an output of ours: where the model uses it itself, ours begins with ``ancre.``."""
        return f"ancre.{name}" if f"ancre.{name}" in self.outputs else name

    def device(self) -> Tuple[str, int]:
        """Where the state of this session is kept."""
        if self.session.get_providers()[0] != "CUDAExecutionProvider":
            return "cpu", 0
        settings = self.session.get_provider_options().get("CUDAExecutionProvider", {})
        return "cuda", int(settings.get("device_id", 0))


def _on_host(value: Any) -> "numpy.ndarray":
    import numpy

    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "shape"):
        return numpy.stack([_on_host(v) for v in value])
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no such numbers.
        value = value.float() if "bfloat16" in str(getattr(value, "dtype", "")) else value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return numpy.asarray(value)


def _check_shape(name: str, given: Sequence[int], wanted: Sequence[Any]) -> None:
    fits = len(given) == len(wanted) and all(not isinstance(w, int) or w == g for g, w in zip(given, wanted))
    if not fits:
        raise ValueError(f"`{name}` has shape {list(given)}, the graph takes {[w or '?' for w in wanted]}")


def _check_sizes(graph: _Graph, given: Mapping[str, Sequence[int]]) -> None:
    """Extents of one name are equal. ONNX Runtime does not mind, and computes with what is there."""
    seen: Dict[str, Tuple[str, int]] = {}
    for name, shape in given.items():
        for symbol, extent in zip(graph.inputs[name].shape, shape):
            if not isinstance(symbol, str):
                continue
            other, size = seen.setdefault(symbol, (name, extent))
            if size != extent:
                raise ValueError(f"`{name}` has {extent} along `{symbol}`, `{other}` has {size}")


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{name}`" for name in names[:5]) + more
