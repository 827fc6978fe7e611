"""A stock session with an adapter file against the merged model: adapter.py BASE.onnx FILE.onnx_adapter MERGED.onnx. Prints the largest
difference from the merged model with the adapter and without, in parts of its largest value, then the adapter's tensors."""
import json
import sys

import numpy
import onnxruntime

base, file, merged = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session, whole = (onnxruntime.InferenceSession(path, options) for path in (base, merged))
adapter, run = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
adapter.Load(file)
run.add_active_adapter(adapter)
random = numpy.random.default_rng(0)
feeds = {i.name: random.standard_normal([d if isinstance(d, int) else 3 for d in i.shape]).astype(numpy.float32) for i in session.get_inputs()}
want = whole.run(None, feeds)[0]
parts = [float(numpy.abs(session.run(None, feeds, *with_)[0] - want).max() / numpy.abs(want).max()) for with_ in ([run], [])]
tensors = onnxruntime.AdapterFormat.read_adapter(file).get_parameters()
print(json.dumps({"with": parts[0], "without": parts[1], "tensors": {name: v.shape() for name, v in tensors.items()}}))
