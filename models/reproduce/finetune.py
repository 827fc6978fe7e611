"""Fine-tuning: networks that were first trained as they are on one task, then fine-tuned on another with and without learned skips.

    python models/reproduce/finetune.py DIR [--tool target/release/ancre-rewrite] [--only NETWORK] [--seeds N] [--tables]

The protocol stands in docs/evidence.md. Networks, what they were trained on first, and data are those of models/tools/defaults.py, which
makes what DIR does not hold. Prints the table and draws docs/finetune.svg. Needs what defaults.py and common.py need.
"""

import json
import sys
from argparse import Namespace

import common

sys.path.insert(0, str(common.MODELS / "tools"))
import defaults  # noqa: E402

VARIANTS = {"default": "", "free": "", "deltas": common.OTHERS["deltas"], "attention": ""}
# These are the network as it was at the start; attention isn't, and is left out of the figure.
EXACT = list(VARIANTS)[:3]
NETWORKS = ("ResNet-20, batch norms kept", "ViT", "GPT-2", "BERT")
CELLS = [cell for cell in defaults.CELLS if cell[0] in NETWORKS]
SEEDS = 5


def place(network, data):
    return f"{network.split(',')[0]}-{data}".replace(" ", "-")


def run(given, network, data):
    runs = defaults.Runs(Namespace(folder=given.dir, tool=given.tool, threads=given.threads))
    classes, _, course = defaults.DATA[data]
    head = [*defaults.NETWORKS[network][1], *(["--classes", classes] if classes else [])]
    files = [x for part, option in (("train", "--data"), ("val", "--val")) for x in (option, runs.data(network, data, 0, part))]
    common.compare(given, place(network, data), runs.network(network), VARIANTS, min(SEEDS, given.seeds), [*head, *files, *course], scratch=False)


def show(given):
    """The table, and docs/finetune.svg: differences of the validation loss from the network as it is, with their intervals."""
    rows, found = [["network", "task", "rate", "variant", "validation loss", "difference", "accuracy", "difference"], ["---"] * 4 + ["--:"] * 4], []
    for network, data in CELLS:
        path = given.dir / place(network, data) / "report.json"
        if not path.exists():
            continue
        report = json.loads(path.read_text())
        rate = json.loads(path.with_name("compare.json").read_text())["lr"]
        losses = {v["name"]: common.values(report, v["name"]) for v in report["variants"]}
        shares = {v: common.values(report, v, "accuracy") for v in losses}
        for v in losses:
            against = [common.paired(of[v], of["cascaded"]) if v != "cascaded" else "" for of in (losses, shares)]
            begin = [network.split(",")[0], data, f"{rate:.2g}"] if v == "cascaded" else ["", "", ""]
            rows.append([*begin, v, common.spread(losses[v].values()), against[0], common.spread(shares[v].values()), against[1]])
        found.append((f"{network.split(',')[0]}\n{data}", [v["val_loss"] for v in report["variants"]], [v["name"] for v in report["variants"]]))
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    if found:
        draw(found)


def draw(found):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "ancre", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    import matplotlib.pyplot as plt

    drawing, axis = plt.subplots(figsize=(6, 0.5 * len(found) + 1), layout="constrained")
    for i, variant in enumerate(EXACT):
        differences = [next(l for l, n in zip(of, names) if n == variant)["difference"] for _, of, names in found]
        means = [d["mean"] for d in differences]
        reach = [d["mean"] - d["low"] if d["low"] is not None else 0 for d in differences]
        at = [k + 0.25 * i - 0.25 for k in range(len(found))]
        style = {"marker": common.MARKS[i], "color": common.COLOURS[i], "linestyle": "", "markerfacecolor": "white", "capsize": 3}
        axis.errorbar(means, at, xerr=reach, label=variant, **style)
    axis.axvline(0, color="#777777", linewidth=0.8)
    axis.set_yticks(range(len(found)), [label for label, _, _ in found])
    axis.invert_yaxis()
    axis.set_xlabel("validation loss less that of the network as it is, 95% interval")
    axis.grid(alpha=0.3, linewidth=0.5, axis="x")
    drawing.legend(loc="outside lower center", ncols=2, frameon=False)
    drawing.savefig(common.DOCS / "finetune.svg", metadata={"Date": None})


def main():
    options = common.parser(__doc__, seeds=99)
    given = common.parsed(options)
    for network, data in [] if given.tables else CELLS:
        if not given.only or any(part in network for part in given.only):
            run(given, network, data)
    show(given)


if __name__ == "__main__":
    main()
