"""The training loop of the documentation: loop.py TRAIN.onnx INPUTS.npz STEPS.json LR

INPUTS holds `input/<name>` and `target`; STEPS lists the rows of each step's batch. Prints one JSON document: the losses, the
ONNX Runtime used, and a sum over each final state tensor.
"""
import json
import sys

import numpy
import onnxruntime

path, inputs, steps, rate = sys.argv[1:]
arrays = numpy.load(inputs)
device = "cpu"
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.use_deterministic_compute = True
options.enable_mem_pattern = False
sess = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
init = onnxruntime.InferenceSession(path.replace(".train.", ".init."), providers=["CPUExecutionProvider"])
described = json.loads(sess.get_modelmeta().custom_metadata_map["ancre.state"])
in_place = {s["output"]: s["input"] for s in described if s["in_place"]}
target = next(i.name for i in sess.get_inputs() if i.name in ("labels", "target"))

losses = []
state = {o.name: onnxruntime.OrtValue.ortvalue_from_numpy(v) for o, v in zip(init.get_outputs(), init.run(None, {}))}
outs, lr = [o.name for o in sess.get_outputs()], numpy.array(rate, numpy.float32)  # a 0-d array, not a Python float
for rows in json.load(open(steps)):
    batch = {k[6:]: numpy.ascontiguousarray(arrays[k][rows]) for k in arrays.files if k.startswith("input/")}
    batch[target] = numpy.ascontiguousarray(arrays["target"][rows])
    io = sess.io_binding()
    for n, v in {**batch, "lr": lr}.items():
        io.bind_cpu_input(n, v)
    for n, v in state.items():
        io.bind_ortvalue_input(n, v)
    for n in outs:
        if in_place.get(n) in state:
            io.bind_ortvalue_output(n, state[in_place[n]])
        else:
            io.bind_output(n, "cpu" if n == "loss" else device)
    sess.run_with_iobinding(io)
    # What is written over stays the value that was made for it, which holds its memory.
    state.update({n[:-5]: v for n, v in zip(outs, io.get_outputs()) if n.endswith(".next") and n not in in_place})
    losses.append(float(io.get_outputs()[outs.index("loss")].numpy()))
    io.clear_binding_inputs()

assert all(s["in_place"] for s in described if s["kind"] == "moment" and s["shape"]), "a moment is not overwritten"
sums = {n: float(v.numpy().astype(numpy.float64).sum()) for n, v in state.items()}
print(json.dumps({"version": onnxruntime.__version__, "losses": losses, "sums": sums}))
