"""The table and the picture of this folder's results.

Usage: python configs/system2/report.py  (writes results.png and prints the table of results.json)
"""

import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SYSTEMS = ("System 1", "System 2", "control", "distilled", "self-distilled")

Records = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Of task, seed and system: what was measured."""


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; of one seed, the value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(records: Records) -> str:
    """Accuracy and tokens of each task (a row) and system (a column), over seeds."""
    lines = ["| task | seeds | " + " | ".join(SYSTEMS) + " |", "| --- | --- |" + " --- |" * len(SYSTEMS)]
    for task, seeds in records.items():
        cells = []
        for name in SYSTEMS:
            found = [each[name] for each in seeds.values() if name in each]
            both = [spread([each[key] for each in found], digits) for key, digits in (("accuracy", 3), ("tokens", 1)) if found]
            cells.append("<br>".join(both))
        lines.append(f"| {task} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(records: Records, file: Path) -> None:
    """Accuracy against tokens per answer, a panel a task; each point is a seed."""
    figure, panels = plt.subplots(1, len(records), figsize=(3.3 * len(records) + 1, 3.6), squeeze=False, sharey=True)
    for panel, (task, seeds) in zip(panels[0], records.items(), strict=True):
        for name in SYSTEMS:
            found = [each[name] for each in seeds.values() if name in each]
            panel.scatter([each["tokens"] for each in found], [each["accuracy"] for each in found], label=name, s=36, alpha=0.8)
        panel.set(title=task.replace("_", " "), xlabel="generated tokens per answer", xscale="log", ylim=(-0.03, 1.03))
        panel.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("accuracy on test problems, greedy")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    results = json.loads((HERE / "results.json").read_text())
    picture(results, HERE / "results.png")
    print(table(results))
