"""The tool's verbs as functions. Each takes the long options of its command line as keywords: ``--label-smoothing 0.1`` is
``label_smoothing=0.1``, a flag is ``True``, an option that may be repeated takes a list, and ``NAME=VALUE`` a dictionary."""

from __future__ import annotations

import html
import json
import os
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, TypeVar, Union

from ._call import Model, Workspace, call, carry_out_apart, report
from ._call import options as options_of
from ._errors import Error, InputError

if TYPE_CHECKING:
    import numpy
    import onnx

    from ._trainer import Trainer

Place = Union[str, "os.PathLike[str]"]


class File(os.PathLike):  # type: ignore[type-arg]
    """A file that the tool wrote, wherever a path is taken: ``onnx.load(file)``, ``onnxruntime.InferenceSession(file)``.

    One that was written to no place of the user's is there as long as this object is.
    """

    def __init__(self, path: Place, workspace: Optional[Workspace] = None) -> None:
        self.path = Path(path)
        self._workspace = workspace

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"File({str(self.path)!r})"

    def read_bytes(self) -> bytes:
        """The file's content, without external data."""
        return self.path.read_bytes()

    def proto(self) -> "onnx.ModelProto":
        """The model with its external data, by the package ``onnx``."""
        import onnx

        return onnx.load(str(self.path))


class Topology:
    """Which states the blocks of a routed network read. Notebooks show it as a picture."""

    def __init__(self, report: Dict[str, Any], svg: str) -> None:
        #: The weights as numbers, as ``ancre-rewrite topology --json`` gives them.
        self.report = report
        #: The picture.
        self.svg = svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self.svg}</div>'


class Rewritten:
    """What :func:`rewrite` wrote and found. Notebooks show the topology."""

    def __init__(self, report: Dict[str, Any], workspace: Workspace, source: str) -> None:
        #: The report, as ``ancre-rewrite MODEL --json`` gives it.
        self.report = report
        self._source, self._workspace = source, workspace
        self._files: Dict[str, File] = {}
        for output in report["outputs"]:
            if Path(output["path"]).exists():
                self._files.setdefault(output["kind"], File(output["path"], workspace))

    @property
    def forward(self) -> Optional[File]:
        """The routed network; nothing after a dry run."""
        return self._files.get("forward")

    @property
    def training(self) -> Optional[File]:
        """The training graph; without one, ``report["training"]["reason"]`` says why."""
        return self._files.get("train")

    @property
    def init(self) -> Optional[File]:
        """What the state starts from: the init graph, or the state's file with ``state="separate"``; nothing with ``"inline"``."""
        return self._files.get("init") or self._files.get("state")

    @property
    def eval(self) -> Optional[File]:
        """The evaluation graph (``eval_graph=True``)."""
        return self._files.get("eval")

    @property
    def infer(self) -> Optional[File]:
        """The inference graph, which takes the state as inputs (``infer_graph=True``)."""
        return self._files.get("infer")

    @property
    def notices(self) -> List[str]:
        """What a person should know of the rewrite."""
        return list(self.report["notices"])

    def trainer(self, **settings: Any) -> "Trainer":
        """A :class:`Trainer` of these graphs; ``settings`` are its own (``providers``, ``lr``, …)."""
        from ._trainer import Trainer

        if self.training is None:
            raise InputError(f"there is no training graph: {self.report['training'].get('reason') or 'it was a dry run'}")
        graphs = {"eval": self.eval, "infer": self.infer, "forward": self.forward}
        return Trainer(self.training, self.init, **{**graphs, **settings})

    def __repr__(self) -> str:
        files = ", ".join(f"{kind}={str(file)!r}" for kind, file in self._files.items())
        return f"Rewritten({files})"

    def _repr_html_(self) -> str:
        try:
            if self.forward is not None and self.report["router"]["chains"]:
                return topology(self.forward)._repr_html_()
            svg = self._workspace.file(".svg")
            inspect(self._source, svg=svg)
            return f'<div style="overflow-x:auto">{svg.read_text(encoding="utf-8")}</div>'
        except Error as e:
            return f"<pre>{html.escape(repr(self))}\n{html.escape(str(e))}</pre>"


class Verdict:
    """Whether two models compute the same. It is true where they do."""

    def __init__(self, report: Dict[str, Any]) -> None:
        #: The report, as ``ancre-rewrite verify --json`` gives it.
        self.report = report

    @property
    def equivalent(self) -> bool:
        """Do they?"""
        return bool(self.report["equivalent"])

    @property
    def method(self) -> str:
        """``proof``: for all inputs; ``numeric``: on the inputs that were tried; ``gradient``."""
        return str(self.report["method"])

    @property
    def first_divergence(self) -> Optional[Dict[str, Any]]:
        """Where the models part."""
        return self.report.get("first_divergence")

    def __bool__(self) -> bool:
        return self.equivalent

    def __repr__(self) -> str:
        said = "equivalent" if self.equivalent else "not equivalent"
        return f"Verdict({said}, by {self.method})"


class Frozen:
    """What :func:`freeze` wrote."""

    def __init__(self, report: Dict[str, Any], workspace: Workspace) -> None:
        #: The report, as ``ancre-rewrite freeze --json`` gives it.
        self.report = report
        #: The deployable model.
        self.model = File(report["output"]["path"], workspace)

    def __repr__(self) -> str:
        return f"Frozen({str(self.model)!r})"


class Comparison:
    """What :func:`compare` found. Notebooks show its page, with curves and intervals."""

    def __init__(self, out: Path, workspace: Workspace) -> None:
        #: The report, as ``ancre-rewrite compare --json`` gives it.
        self.report: Dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
        #: The page.
        self.page = File(out / "compare.html", workspace)

    @property
    def says(self) -> str:
        """The sentence that the numbers allow."""
        return str(self.report["says"])

    def __repr__(self) -> str:
        return f"Comparison({self.says!r})"

    def _repr_html_(self) -> str:
        page = html.escape(self.page.path.read_text(encoding="utf-8"))
        return f'<iframe style="width: 100%; height: 40em; border: 0" srcdoc="{page}"></iframe>'


F = TypeVar("F", bound=Callable[..., Any])


class Gradients:
    """What :func:`grad` wrote."""

    def __init__(self, report: Dict[str, Any], workspace: Workspace) -> None:
        #: The report, as ``ancre-rewrite grad --json`` gives it.
        self.report = report
        #: The model with the gradients beside its outputs.
        self.model = File(report["outputs"][0]["path"], workspace)

    @property
    def outputs(self) -> Dict[str, str]:
        """The output that has the gradient, by the input or initializer that it is taken with respect to."""
        return {gradient["name"]: gradient["output"] for gradient in self.report["gradients"]}

    def __repr__(self) -> str:
        return f"Gradients({str(self.model)!r})"


def _with_options(verb: Optional[str]) -> Callable[[F], F]:
    """Shows the command line's options where Python shows a function's: in completions, signatures and ``help()``."""

    def describe(function: F) -> F:
        plain = signature(function)
        known = {name: option.help for name, option in options_of(verb).items() if name not in plain.parameters}
        fixed = [p for p in plain.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        keywords = [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in known]
        function.__signature__ = plain.replace(parameters=fixed + keywords)  # type: ignore[attr-defined]
        lines = [f"    {name}: {help}" for name, help in known.items()]
        function.__doc__ = "\n".join([(function.__doc__ or "").rstrip(), "", "    Options:", "", *lines])
        return function

    return describe


@_with_options("inspect")
def inspect(model: Model, **options: Any) -> Any:
    """The residual structure of a model: a dictionary; a text where ``why=NAME`` or ``rejected=True`` asks for one."""
    space = Workspace()
    words = [space.model(model)] + space.words("inspect", "inspect", options)
    if options.get("why") or options.get("rejected"):
        return call("inspect", words)[0]
    return report("inspect", words)[0]


@_with_options(None)
def rewrite(model: Model, out: Optional[Place] = None, **options: Any) -> Rewritten:
    """Routes a model's skips, builds its training graph, proves the rewrite, and writes the files.

    ``out`` is a directory, or the forward graph's file (``.onnx``). Without it the files live as long as the objects that name them.

    Raises :class:`InputError` for a model or an option that cannot be used, and :class:`CheckFailed` when the rewrite was not proved or
    ``require`` or ``require_equivalent`` is not met. Nothing is written then.
    """
    space = Workspace()
    path = space.model(model)
    place = str(space.file("")) if out is None else os.fspath(out)
    if not place.endswith(".onnx"):
        # The command line takes a name without a slash for a file, but a pathlib.Path never ends in one.
        place = os.path.join(place, "")
    if out is None:
        os.makedirs(place)
    words = [path, f"--out={place}"] + space.words("rewrite", None, options)
    return Rewritten(report(None, words)[0], space, path)


@_with_options("verify")
def verify(a: Model, b: Model, **options: Any) -> Verdict:
    """Do two models compute the same? A proof is tried first, then they are run on chosen inputs (``input={"x": array}``: on yours).

    Raises :class:`InputError` where that could not be checked.
    """
    space = Workspace()
    words = [space.model(a, "a"), space.model(b, "b")] + space.words("verify", "verify", options)
    return Verdict(report("verify", words)[0])


@_with_options("verify")
def verify_gradient(training: Model, **options: Any) -> Verdict:
    """Are the gradients of a training graph those of its loss, and its updates the optimiser's?"""
    space = Workspace()
    words = [f"--gradient={space.model(training)}"] + space.words("verify_gradient", "verify", options)
    return Verdict(report("verify", words)[0])


@_with_options("grad")
def grad(model: Model, out: Optional[Place] = None, **options: Any) -> Gradients:
    """Writes a model with the gradients of its outputs beside them, residual or not; nothing trains.

    ``of={"energy": "sum"}`` is the sum of an output's elements, ``of="logits"`` takes its cotangent as the input ``logits.ct``; ``wrt`` is a
    list of names or globs.
    """
    space = Workspace()
    words = [space.model(model), f"--out={os.fspath(space.file('.onnx') if out is None else out)}"]
    return Gradients(report("grad", words + space.words("grad", "grad", options))[0], space)


@_with_options("compare")
def compare(model: Model, out: Optional[Place] = None, quiet: bool = False, **options: Any) -> Comparison:
    """Does the router help on this model and this data? Trains the network with and without it over seeds, in processes of their own.

    ``data="train.npz"`` names files, as on the command line; ``variants`` is a list, or a dictionary of options: ``{"wide": "--scope network"}``.
    Without ``out`` the runs live as long as the object; ``out="runs", resume=True`` goes on with them. ``quiet=True`` shows no progress.
    """
    space = Workspace()
    place = Path(space.file("") if out is None else out)
    carry_out_apart("compare", [space.model(model), f"--out={place}"] + space.words("compare", "compare", options), quiet)
    return Comparison(place, space)


@_with_options("freeze")
def freeze(
    model: Model,
    state: Union[None, Place, Mapping[str, "numpy.ndarray"], "Trainer"] = None,
    out: Optional[Place] = None,
    **options: Any,
) -> Frozen:
    """Writes trained state back into a forward graph and bakes the router in. The result is plain ONNX.

    ``state`` is a checkpoint's file, a dictionary of arrays under the names of the training graph's state inputs, or a :class:`Trainer`.
    """
    space = Workspace()
    place = space.file(".onnx") if out is None else out
    words = [space.model(model), f"--out={os.fspath(place)}"]
    if state is not None:
        words.append(f"--state={_state_file(space, state)}")
    return Frozen(report("freeze", words + space.words("freeze", "freeze", options))[0], space)


@_with_options("topology")
def topology(source: Union[Model, Rewritten, "Trainer"], **options: Any) -> Topology:
    """Which states the blocks of a routed network read: of a forward graph, the directory of a run, a checkpoint, or a
    :class:`Trainer` as it stands. ``html=FILE`` and ``png=FILE`` write a page and a picture besides."""
    space = Workspace()
    svg = Path(options.get("svg") or space.file(".svg"))
    if isinstance(source, Rewritten):
        if source.forward is None:
            raise InputError("nothing was written: it was a dry run")
        source = source.forward
    path = _state_file(space, source) if hasattr(source, "state_dict") else space.model(source)
    found, _ = report("topology", [path] + space.words("topology", "topology", {**options, "svg": svg}))
    return Topology(found, svg.read_text(encoding="utf-8"))


def _state_file(space: Workspace, state: Any) -> str:
    if isinstance(state, (str, os.PathLike)):
        return os.fspath(state)
    if not hasattr(state, "save") and not hasattr(state, "items"):
        raise TypeError(f"a state is a file, a dictionary of arrays or a Trainer, not {type(state).__name__}")
    path = space.file(".safetensors")
    if hasattr(state, "save"):
        state.save(path)
    else:
        import numpy
        from safetensors.numpy import save_file

        save_file({name: numpy.ascontiguousarray(value) for name, value in state.items()}, path)
    return str(path)
