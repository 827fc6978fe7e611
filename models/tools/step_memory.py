"""Peak memory and time of training steps in a stock ONNX Runtime, each graph in a process of its own:

    python models/tools/step_memory.py [--steps 4] [--batch 4] NAME.train.onnx...

The state stays in OrtValues, which go back as they came. Prints what the process holds before the session, with the session open,
at its peak over the steps, and the seconds of the last step (user time). Needs numpy and onnxruntime.
"""
import argparse, json, os, resource, subprocess, sys, time
import numpy as np

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(path, steps, batch, threads, prepack):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    begin = resident()
    init = ort.InferenceSession(path.replace(".train.", ".init."), options)
    first = [o.name for o in init.get_outputs()]
    io = init.io_binding()
    for name in first:
        io.bind_output(name, "cpu")
    init.run_with_iobinding(io)
    state = dict(zip(first, io.get_outputs()))
    held = sum(int(np.prod(v.shape())) * v.numpy().itemsize for v in state.values())
    del init, io
    session = ort.InferenceSession(path, options)
    opened = resident()
    random = np.random.default_rng(0)
    feeds = {"lr": np.array(1e-4, np.float32)}
    for i in session.get_inputs():
        if i.name in state or i.name == "lr":
            continue
        shape = [d if isinstance(d, int) else batch for d in i.shape]
        feeds[i.name] = random.standard_normal(shape).astype(FLOATS[i.type]) if i.type in FLOATS else random.integers(0, 64, shape)
    outputs, losses = [o.name for o in session.get_outputs()], []
    for _ in range(steps):
        io = session.io_binding()
        for name, value in feeds.items():
            io.bind_cpu_input(name, value)
        for name, value in state.items():
            io.bind_ortvalue_input(name, value)
        for name in outputs:
            if name.endswith(".next") or name == "loss":
                io.bind_output(name, "cpu")
        bound, used = [n for n in outputs if n.endswith(".next") or n == "loss"], time.process_time()
        session.run_with_iobinding(io)
        used = time.process_time() - used
        got = dict(zip(bound, io.get_outputs()))
        losses.append(float(got.pop("loss").numpy()))
        state = {n[: -len(".next")]: v for n, v in got.items()}
        del io, got
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"begin": begin, "state": held, "opened": opened, "peak": peak, "seconds": used, "losses": losses}


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("graphs", nargs="+")
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--no-prepack", action="store_true", help="constant matrices are not copied into another layout")
    p.add_argument("--child", action="store_true")
    a = p.parse_args()
    if a.child:
        print(json.dumps(measure(a.graphs[0], a.steps, a.batch, a.threads, not a.no_prepack)))
        sys.exit()
    print(f"{'graph':40} {'state MB':>9} {'opened MB':>10} {'peak MB':>9} {'s a step':>9}  losses")
    for path in a.graphs:
        command = [sys.executable, __file__, "--child", "--steps", str(a.steps), "--batch", str(a.batch), "--threads", str(a.threads), *(["--no-prepack"] if a.no_prepack else []), path]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        losses = " ".join(f"{v:.4f}" for v in r["losses"])
        print(f"{os.path.basename(path):40} {r['state'] / 1e6:9.1f} {(r['opened'] - r['begin']) / 1e6:10.1f} {(r['peak'] - r['begin']) / 1e6:9.1f} {r['seconds']:9.2f}  {losses}", flush=True)
