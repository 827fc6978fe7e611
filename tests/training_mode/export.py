"""Small networks exported in training mode: dropout (attention's too) and batch normalisation are active in the files.

python tests/training_mode/export.py: needs torch and onnx. Random weights, seeded.
"""
import os, onnx, torch, torch.nn as nn

class Block(nn.Module):
    """Attention and MLP with dropout on the weights of attention and on both branches."""
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.n1, self.n2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.a, self.b = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dp, self.da = nn.Dropout(0.1), nn.Dropout(0.2)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        w = self.da(torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5, -1))
        x = x + self.dp(self.o((w @ v).transpose(1, 2).reshape(n, t, d)))
        return x + self.dp(self.b(torch.relu(self.a(self.n2(x)))))

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.drop, self.bl, self.head = nn.Linear(8, 16), nn.Dropout(0.3), nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.drop(self.e(x))
        for b in self.bl: x = b(x)
        return self.head(x.mean(1))

class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        conv = lambda: nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bl = nn.ModuleList(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), conv(), nn.BatchNorm2d(8)) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.b(self.c(x)))
        for b in self.bl: x = torch.relu(x + b(x))
        return self.f(x.mean((2, 3)))

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    torch.manual_seed(0)
    for name, net, x in [("transformer", Transformer(), torch.randn(2, 6, 8)), ("convnet", ConvNet(), torch.randn(2, 3, 8, 8))]:
        path = f"{here}/{name}.onnx"
        torch.onnx.export(net.train(), (x,), path, dynamo=False, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, opset_version=17,
                          input_names=["x"], output_names=["logits"], dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}})
        if name == "transformer":
            torch.onnx.export(net, (x,), f"{here}/transformer_dynamo.onnx", dynamo=True, external_data=False)  # batch 2 in its shapes
    for name in ["transformer", "convnet", "transformer_dynamo"]:
        m = onnx.load(f"{here}/{name}.onnx")
        for n in m.graph.node: n.doc_string = ""; del n.metadata_props[:]
        for v in m.graph.value_info: del v.metadata_props[:]
        if name != "transformer_dynamo": del m.graph.value_info[:]
        del m.metadata_props[:], m.graph.metadata_props[:]
        onnx.save(m, f"{here}/{name}.onnx")
