"""The examples of the documentation run as they stand there."""

import re
import shutil

import pytest
from conftest import REPOSITORY

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(encoding="utf-8"), re.S)


def test_the_documentation_has_examples():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_runs(block, tmp_path, monkeypatch):
    shutil.copytree(REPOSITORY / "models" / "data", tmp_path / "models" / "data")
    shutil.copy(REPOSITORY / "models" / "resnet_batch1.onnx", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/python.md", "exec"), {})
