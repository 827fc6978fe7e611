"""Two processes and the two graphs of a step, with a sum of gradients over a pipe: ranks.py GRAD.onnx DATA.npz RATE STEPS BATCH

Prints one JSON document: the losses of two processes of BATCH samples, those of one of twice as many, and how far the states are apart.
"""
import json
import multiprocessing
import sys

import numpy
import onnxruntime

path, data, rate, steps, batch = sys.argv[1], dict(numpy.load(sys.argv[2])), *map(float, sys.argv[3:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1


def run(session, feeds):
    wanted = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {n: v for n, v in feeds.items() if n in wanted})))


def train(rank, size, pipe):
    kinds = ("grad", "update", "init")
    grad, update, init = (onnxruntime.InferenceSession(path.replace(".grad.", f".{k}."), options) for k in kinds)
    about = json.loads(grad.get_modelmeta().custom_metadata_map["ancre.loss"])
    state, lr, losses = run(init, {}), numpy.array(rate, numpy.float32), []

    def total(values):  # the same sum, in the same order, on both
        if size == 1:
            return values
        pipe.send(values)
        both = [values, pipe.recv()][:: -1 if rank else 1]
        return both[0] + both[1]

    for step in range(int(steps)):
        rows = numpy.arange(step * batch * 2, (step + 1) * batch * 2).astype(int) % len(data[about["target"]])
        rows = rows[rank * len(rows) // size : (rank + 1) * len(rows) // size]
        mine = {n: v[rows] for n, v in data.items()}
        r = run(grad, state | mine)
        target = mine[about["target"]]
        target = target[:, 1:] if about["kind"] == "next-token" else target
        count = numpy.float32((target != about["ignore_index"]).sum() if target.dtype == numpy.int64 else len(target))
        part = count / total(count)
        summed = {n: total(v * (numpy.float32(1 / size) if n.endswith(".next") else part)) for n, v in r.items() if n == "loss" or n.endswith((".grad", ".next"))}
        r |= summed
        r |= run(update, state | r | {"lr": lr})
        state = state | {n[:-5]: v for n, v in r.items() if n.endswith(".next")}
        losses.append(float(r["loss"]))
    return losses, state


def other(pipe):
    pipe.send(train(1, 2, pipe))


if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=other, args=(theirs,))
    process.start()
    losses, state = train(0, 2, ours)
    _, second = ours.recv()
    process.join()
    alone, whole = train(0, 1, None)
    equal = all(numpy.array_equal(state[n], second[n]) for n in state)
    apart = max(float(numpy.abs(state[n] - whole[n]).max()) for n in state)
    print(json.dumps({"two": losses, "one": alone, "equal": equal, "apart": apart}))
