"""Data parallel with the two graphs of `--step split`, under torch.distributed: gloo on CPUs, NCCL on GPUs.

    torchrun --nproc-per-node 2 distributed.py STEM.ancre.grad.onnx TRAIN.npz --batch 8 --steps 50 --out trained.safetensors
"""
import argparse, json, os
import numpy, onnxruntime, torch
import torch.distributed as dist
from safetensors.numpy import save_file

p = argparse.ArgumentParser()
p.add_argument("grad"), p.add_argument("data"), p.add_argument("--out")
p.add_argument("--batch", type=int, default=8), p.add_argument("--steps", type=int, default=50), p.add_argument("--lr", type=float, default=1e-3)
a = p.parse_args()

device, gpu = ("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else ("cpu", 0)
if device == "cuda": torch.cuda.set_device(gpu)
dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank, size = dist.get_rank(), dist.get_world_size()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 1))
provider = ("CUDAExecutionProvider", {"device_id": gpu}) if device == "cuda" else "CPUExecutionProvider"
grad, update, init = (onnxruntime.InferenceSession(a.grad.replace(".grad.", f".{kind}."), options, [provider]) for kind in ("grad", "update", "init"))

def run(session, values):                    # the values that it takes, on the device; what it gives stays there
    io = session.io_binding()
    for i in session.get_inputs(): io.bind_ortvalue_input(i.name, values[i.name])
    for o in session.get_outputs(): io.bind_output(o.name, device, gpu)
    session.run_with_iobinding(io)
    return dict(zip((o.name for o in session.get_outputs()), io.get_outputs()))

about = json.loads(grad.get_modelmeta().custom_metadata_map["ancre.loss"])
assert about["reduction"] == "mean"

def counted(target):                         # what the mean of the loss is over
    target = target[:, 1:] if about["kind"] == "next-token" else target
    return (target != about["ignore_index"]).sum() if target.dtype == numpy.int64 else len(target)

def put(array): return onnxruntime.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(array), device, gpu)

arrays = dict(numpy.load(a.data))
order = numpy.concatenate([numpy.random.RandomState(e).permutation(len(arrays[about["target"]])) for e in range(99)])
state, lr = run(init, {}), put(numpy.float32(a.lr).reshape(()))
for step in range(a.steps):
    rows = order[step * a.batch * size :][: a.batch * size][rank :: size]               # this rank's part of the batch of all
    r = run(grad, state | {n: put(v[rows]) for n, v in arrays.items()})
    count = torch.tensor([float(counted(arrays[about["target"]][rows]))], device=device)
    total = count.clone()
    dist.all_reduce(total)
    views = {n: torch.from_dlpack(v) for n, v in r.items() if n == "loss" or n.endswith((".grad", ".next"))}
    flat = torch.cat([v.flatten() * (1 / size if n.endswith(".next") else count / total) for n, v in views.items()])
    dist.all_reduce(flat)                                                               # one sum over all ranks
    for v, s in zip(views.values(), flat.split([v.numel() for v in views.values()])): v.copy_(s.view(v.shape))   # in ONNX Runtime's memory
    state |= {n[:-5]: v for n, v in (r | run(update, state | r | {"lr": lr})).items() if n.endswith(".next")}
    if rank == 0: print(step + 1, float(views["loss"]), flush=True)
if rank == 0 and a.out: save_file({n: v.numpy() for n, v in state.items()}, a.out)
dist.destroy_process_group()
