"""The command-line tool inside the package."""

import inspect
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import ancre_rewrite as ancre
import onnx
import onnxruntime
import pytest
from ancre_rewrite._call import options

TOOL = Path(sysconfig.get_path("scripts"), "ancre-rewrite" + (".exe" if os.name == "nt" else ""))


def run(*words, **settings):
    return subprocess.run([*map(str, words)], capture_output=True, text=True, **settings)


@pytest.mark.parametrize("command", [[TOOL], [sys.executable, "-m", "ancre_rewrite"]])
def test_the_tool_is_on_the_path(command, mlp, tmp_path):
    onnx.save(mlp, tmp_path / "m.onnx")
    ran = run(*command, "m.onnx", "--loss", "cross-entropy", cwd=tmp_path)
    assert ran.returncode == 0 and "proved for all inputs" in ran.stdout, ran.stderr
    assert (tmp_path / "m.ancre.train.onnx").exists()
    ran = run(*command, "inspect", "absent.onnx", cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr.startswith("error: absent.onnx"), ran.stderr
    assert run(*command, "--version").stdout.split() == ["ancre-rewrite", ancre.__version__]
    ran = run(*command, "--no-such-option")
    assert ran.returncode == 2 and "--no-such-option" in ran.stderr


def test_the_package_needs_no_other_until_it_is_used(mlp, tmp_path):
    onnx.save(mlp, tmp_path / "m.onnx")
    absent = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'onnx', 'onnxruntime', 'safetensors']))"
    script = f"{absent}; import ancre_rewrite as ancre; print(bool(ancre.verify('m.onnx', ancre.rewrite('m.onnx').forward)))"
    ran = run(sys.executable, "-c", script, cwd=tmp_path)
    assert ran.stdout == "True\n", ran.stderr
    ran = run(sys.executable, "-c", f"{absent}; import ancre_rewrite as ancre; ancre.Trainer('m.onnx')", cwd=tmp_path)
    assert ran.returncode == 1 and "ancre-rewrite[train]" in ran.stderr, ran.stderr


def test_the_runtime_is_the_environments(tmp_path):
    """Whatever lies in the user's cache, or belongs to another Python."""
    elsewhere = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    ran = run(TOOL, "runtime", "show", env={**os.environ, **elsewhere, "PATH": os.defpath})
    assert ran.returncode == 0 and onnxruntime.__version__ in ran.stdout, ran.stdout + ran.stderr
    assert str(Path(onnxruntime.__file__).parent) in ran.stdout


def test_engines_have_processes_of_their_own(tmp_path, killer):
    onnx.save(killer, tmp_path / "m.onnx")
    (tmp_path / "pairs.txt").write_text("m.onnx m.onnx")
    for words in (["verify", "m.onnx", "m.onnx"], ["verify", "--pairs", "pairs.txt"]):
        ran = run(TOOL, *words, "--no-proof", "--engine", "ort", cwd=tmp_path)
        assert ran.returncode == 2 and "ort died" in ran.stderr, ran.stderr


@pytest.mark.parametrize("verb", [None, "inspect", "verify", "freeze", "grad", "topology", "compare"])
def test_every_long_option_of_the_help_is_a_keyword(verb):
    text = run(TOOL, *([verb] if verb else []), "--help").stdout.split("Examples:")[0]
    flags = set(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", text, re.M)) - {"help", "version", "out", "json", "quiet", "verbose"}
    assert flags and flags == {name.replace("_", "-") for name in options(verb)}


def test_python_shows_the_options():
    shown = inspect.signature(ancre.rewrite).parameters
    assert list(shown)[:2] == ["model", "out"] and "label_smoothing" in shown and "json" not in shown
    assert "label_smoothing: Label smoothing of the cross-entropies" in ancre.rewrite.__doc__
    assert list(inspect.signature(ancre.freeze).parameters).count("state") == 1
