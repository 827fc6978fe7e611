"""Trains residual networks that came as ONNX files, with learned skips if wanted, and proves that two ONNX files compute the same.

    import ancre_rewrite as ancre

    graphs = ancre.rewrite("resnet.onnx", classes=10, eval_graph=True)
    trainer = graphs.trainer(lr=1e-3)
    for batch in loader:
        loss = trainer.step(**batch)
    trainer.export("deployed.onnx")
"""

from importlib.metadata import version as _version

from ._call import Model
from ._errors import CheckFailed, Error, InputError, Notice
from ._trainer import Evaluation, Trainer
from ._verbs import (
    Comparison,
    File,
    Frozen,
    Gradients,
    Rewritten,
    Topology,
    Verdict,
    compare,
    freeze,
    grad,
    inspect,
    rewrite,
    topology,
    verify,
    verify_gradient,
)

__version__ = _version("ancre-rewrite")

__all__ = [
    "CheckFailed",
    "Comparison",
    "Error",
    "Evaluation",
    "File",
    "Frozen",
    "Gradients",
    "InputError",
    "Model",
    "Notice",
    "Rewritten",
    "Topology",
    "Trainer",
    "Verdict",
    "compare",
    "freeze",
    "grad",
    "inspect",
    "rewrite",
    "topology",
    "verify",
    "verify_gradient",
]
