"""The command-line tool inside the package."""

import re
import subprocess
import sys
from pathlib import Path

import ancre_rewrite as ancre
import onnx
import onnxruntime
import pytest
from ancre_rewrite._call import options

TOOL = Path(sys.executable).with_name("ancre-rewrite")


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


def test_the_runtime_is_the_environments(tmp_path):
    """Whatever lies in the user's cache, or belongs to another Python."""
    ran = run(TOOL, "runtime", "show", env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert ran.returncode == 0 and onnxruntime.__version__ in ran.stdout, ran.stdout + ran.stderr
    assert str(Path(onnxruntime.__file__).parent) in ran.stdout


def test_engines_have_processes_of_their_own(tmp_path, parse):
    onnx.save(parse("g (int64[4] x) => (int64[4] y) { z = Sub (x, x) y = Mod (x, z) }"), tmp_path / "m.onnx")
    ran = run(TOOL, "verify", "m.onnx", "m.onnx", "--no-proof", "--engine", "ort", cwd=tmp_path)
    assert ran.returncode == 2 and "ort cannot run it: " in ran.stderr, ran.stderr


@pytest.mark.parametrize("verb", [None, "inspect", "verify", "freeze", "topology"])
def test_every_long_option_of_the_help_is_a_keyword(verb):
    text = run(TOOL, *([verb] if verb else []), "--help").stdout.split("Examples:")[0]
    flags = set(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", text, re.M)) - {"help", "version", "out", "json", "quiet", "verbose"}
    assert flags and flags == {name.replace("_", "-") for name in options(verb)}
