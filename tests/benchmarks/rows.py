"""Reading rows: `python -m tests.benchmarks.rows`. Eight rows of a file of 300,000 against a file of 8, and the rate.

Each measurement is a process of its own that reads prompts with the tokenizer of the generated tasks; peak memory is the
process's largest resident set.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path("runs/bench/rows.json")
ROWS = 300_000
TEXT = "a longer text of a row, such as an instruction with its context " * 12


def write(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"{number} {TEXT}", "answer": str(number), "date": "1987-03-02"}) + "\n")
    return path


def measure(path: str, rows: int | None) -> dict[str, float]:
    """Seconds and peak GiB of this process for reading prompts of a file."""
    from minidist.config.data import RenderConfig, SourceConfig
    from minidist.data.rendering import Renderer, character_tokenizer
    from minidist.data.sources import read_prompts

    renderer = Renderer(character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 ,"), RenderConfig())
    started = time.perf_counter()
    found, _ = read_prompts(SourceConfig(path=path, rows=rows), renderer, max_prompt_tokens=2000)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"rows": len(found), "seconds": round(seconds, 3), "peak_gib": round(peak, 4)}


def child(path: Path, rows: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.rows", str(path), str(rows or 0)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        few, many = write(Path(folder) / "few.jsonl", 8), write(Path(folder) / "many.jsonl", ROWS)
        size = many.stat().st_size / 2**20
        results = {"8 of 8": child(few, 8), f"8 of {ROWS}": child(many, 8), "20,000 of them": child(many, 20_000)}
    print(f"a file of {ROWS:,} rows has {size:,.0f} MiB")
    for name, result in results.items():
        print(f"{name}: {result}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]) or None)))
    else:
        main()
