"""Models and data for the tests, which run on the package as it is installed."""

import platform
from pathlib import Path

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

REPOSITORY = Path(__file__).resolve().parents[3]


def _mlp(blocks=3, width=8, classes=3, seed=0):
    """x -> (x + W tanh(x)) … -> a linear head."""
    rng = numpy.random.default_rng(seed)
    nodes, weights, state = [], [], "x"

    def weight(name, *shape):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(numpy.float32), name))
        return name

    for i in range(blocks):
        w = weight(f"w{i}", width, width)
        nodes.append(helper.make_node("Tanh", [state], [f"t{i}"], name=f"/tanh{i}"))
        nodes.append(helper.make_node("MatMul", [f"t{i}", w], [f"m{i}"], name=f"/linear{i}"))
        nodes.append(helper.make_node("Add", [state, f"m{i}"], [f"h{i}"], name=f"/add{i}"))
        state = f"h{i}"
    nodes.append(helper.make_node("MatMul", [state, weight("head", width, classes)], ["y"], name="/head"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "mlp", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="session")
def mlp():
    return _mlp()


@pytest.fixture(scope="session")
def other_mlp():
    return _mlp(seed=1)


@pytest.fixture(scope="session")
def mlp_batches():
    """Points and the classes that a fixed linear map gives them."""
    rng = numpy.random.default_rng(7)
    teacher = rng.normal(size=(8, 3))
    points = [rng.normal(size=(16, 8)).astype(numpy.float32) for _ in range(10)]
    return [{"x": x, "labels": (x @ teacher).argmax(1)} for x in points]


@pytest.fixture(scope="session")
def two_outputs():
    """A network with classes `y` and numbers `z`, points, labels and numbers."""
    model = _mlp(seed=3)
    rng = numpy.random.default_rng(4)
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.5, (8, 2)).astype(numpy.float32), "second"))
    model.graph.node.append(helper.make_node("MatMul", ["h2", "second"], ["z"], name="/second"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]))
    points = rng.normal(size=(16, 8)).astype(numpy.float32)
    return model, points, rng.integers(0, 3, 16), rng.normal(size=(16, 2)).astype(numpy.float32)


@pytest.fixture(scope="session")
def parse():
    """A model from a line of text."""

    def model(graph):
        return onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + graph)

    return model


@pytest.fixture(scope="session")
def slow(parse):
    """What tract never finishes: a window of 2^40 elements."""
    return parse(
        "g (float[1, 1, 4, 4] x) => (float y) { y = AveragePool <kernel_shape = [1099511627776, 2],"
        " pads = [1099511627776, 0, 1099511627776, 0]> (x) }"
    )


@pytest.fixture(scope="session")
def killer(parse):
    """What ends ONNX Runtime on x86 processors: as it opens the model it divides constants, which overflows. Elsewhere nothing happens."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no model is known that ends ONNX Runtime on this machine")
    return parse(
        "g (int64[1] x) => (int64[1] y) <int64[1] a = {-9223372036854775808}, int64[1] b = {-1}> { c = Div (a, b) y = Add (x, c) }"
    )


@pytest.fixture(scope="session")
def digits():
    """The network for one image and a thousand classes, and ten batches of digits."""
    data = numpy.load(REPOSITORY / "models/data/digits_train.npz")
    images, labels = data["input"].astype(numpy.float32) / 255, data["labels"].astype(numpy.int64)
    batches = [{"input": images[i : i + 32], "labels": labels[i : i + 32]} for i in range(0, 320, 32)]
    return REPOSITORY / "models/resnet_batch1.onnx", batches
