"""A small float network as ONNX Runtime's own tools quantise it.

python tests/qat/quantise.py: needs onnx and onnxruntime; writes the .onnx files that it names.
"""
import os, tempfile
import numpy as np, onnx, onnxruntime
from onnx import TensorProto as T, helper as h, numpy_helper as nh
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

here, rng = os.path.dirname(os.path.abspath(__file__)), np.random.default_rng(0)
inits = []
def w(name, *shape, sigma=0.4): inits.append(nh.from_array((rng.standard_normal(shape) * sigma).astype(np.float32), name)); return name
def ints(name, *v): inits.append(nh.from_array(np.array(v, np.int64), name)); return name
def save(name, nodes, shape, opset):
    info = h.make_tensor_value_info
    g = h.make_graph([h.make_node(op, i, [o], name=f"{op}_{o}", **a) for op, i, o, a in nodes], name, [info("x", T.FLOAT, ["n", *shape])], [info("y", T.FLOAT, ["n", 4])], list(inits))
    m = onnx.shape_inference.infer_shapes(h.make_model(g, opset_imports=[h.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)); inits.clear()
    path = f"{tempfile.mkdtemp()}/{name}.onnx"; onnx.save(m, path); return path

def image(opset=17):
    same = {"pads": [1, 1, 1, 1]}
    return save("image", [
        ("Conv", ["x", w("c1", 6, 3, 3, 3), w("b1", 6, sigma=0.1)], "a", same), ("Relu", ["a"], "r", {}),
        ("MaxPool", ["r"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["p", w("c2", 6, 6, 3, 3, sigma=0.2), w("b2", 6, sigma=0.1)], "f", same), ("Add", ["p", "f"], "s", {}),
        ("Conv", ["s", w("c3", 6, 1, 3, 3, sigma=0.3), w("b3", 6, sigma=0.1)], "d", {**same, "group": 6}), ("LeakyRelu", ["d"], "l", {"alpha": 0.125}),
        ("Sigmoid", ["s"], "gate", {}), ("Mul", ["l", "gate"], "m", {}), ("Concat", ["m", "s"], "j", {"axis": 1}),
        ("GlobalAveragePool", ["j"], "g", {}), ("Flatten", ["g"], "v", {}), ("Gemm", ["v", w("fc", 4, 12), w("fb", 4, sigma=0.1)], "y", {"transB": 1})], (3, 8, 8), opset)

def tokens(opset=17):
    return save("tokens", [
        ("MatMul", ["x", w("m1", 32, 48, sigma=0.2)], "a", {}), ("Add", ["a", w("b1", 48, sigma=0.1)], "h", {}), ("Tanh", ["h"], "t", {}),
        ("MatMul", ["t", w("m2", 48, 32, sigma=0.2)], "f", {}), ("Add", ["x", "f"], "s", {}),
        ("MatMul", ["s", w("m3", 32, 4, sigma=0.2)], "z", {}), ("Add", ["z", w("b3", 4, sigma=0.1)], "y", {})], (32,), opset)

class Samples(CalibrationDataReader):
    def __init__(self, *shape): self.all = iter([{"x": rng.standard_normal((4, *shape)).astype(np.float32)} for _ in range(8)])
    def get_next(self): return next(self.all, None)

def out(name): return f"{here}/{name}.onnx"
IMAGE = (3, 8, 8)
quantize_static(image(), out("qoperator"), Samples(*IMAGE), quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8)
quantize_static(image(), out("qoperator_channels"), Samples(*IMAGE), quant_format=QuantFormat.QOperator, per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)
quantize_static(image(), out("qdq_channels"), Samples(*IMAGE), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)
quantize_static(image(21), out("qdq_wide"), Samples(*IMAGE), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt16, weight_type=QuantType.QInt8)
quantize_static(image(), out("qdq_contributed"), Samples(*IMAGE), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt16, weight_type=QuantType.QInt4, extra_options={"UseQDQContribOps": True})
quantize_static(tokens(), out("qoperator_tokens"), Samples(32), quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
quantize_dynamic(tokens(), out("dynamic"), weight_type=QuantType.QInt8)
quantize_dynamic(tokens(), out("dynamic_channels"), weight_type=QuantType.QUInt8, per_channel=True)
quantize_dynamic(image(), out("dynamic_image"), weight_type=QuantType.QUInt8)
# As the runtime saves what it has optimised.
o = onnxruntime.SessionOptions(); o.graph_optimization_level, o.optimized_model_filepath = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, out("dynamic_fused")
onnxruntime.InferenceSession(out("dynamic_channels"), o, providers=["CPUExecutionProvider"])
# Of 48 numbers blocks of 32 leave the last one half full.
for name, symmetric, form, block in [("nbits", False, QuantFormat.QOperator, 16), ("nbits_symmetric", True, QuantFormat.QOperator, 16), ("nbits_qdq", False, QuantFormat.QDQ, 16), ("nbits_ragged", False, QuantFormat.QDQ, 32)]:
    q = MatMulNBitsQuantizer(onnx.load(tokens(21)), block_size=block, is_symmetric=symmetric, quant_format=form); q.process(); q.model.save_model_to_file(out(name))
