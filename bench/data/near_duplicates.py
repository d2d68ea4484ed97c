"""Our near-duplicate search beside datasketch's, on the same rows, in turns.

    uv pip install --target /tmp/datasketch datasketch==2.0.0
    PYTHONPATH=/tmp/datasketch python bench/data/near_duplicates.py [--rows 5000] [--rounds 3]

-> one JSON object.  Each turn is a fresh process: texts in memory -> signatures -> index -> pairs.
datasketch: MinHash with 128 permutations over character 5-grams (3-grams from Chinese), updated in
one batch, and MinHashLSH, at its own hash and at our threshold.  One row in ten is a copy of an
earlier one with one character changed; `planted_found` counts these.
"""

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

THRESHOLD = 0.7
COPIES = 0.1
_SYLLABLES = "ba ce di fo gu ha le mi no pu ra se ti vo wy tion ing er st ment al"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--turn", choices=("ours", "datasketch"), help="used by the script itself")
    asked = options.parse_args()
    if asked.turn:
        print(json.dumps(turn(asked.turn, asked.rows)))
        return
    if importlib.util.find_spec("datasketch") is None:
        sys.exit("datasketch is missing: see the head of this file for how to get it")
    print(json.dumps(summary(asked.rows, asked.rounds), indent=1))


def summary(rows: int, rounds: int) -> dict[str, object]:
    """Both peers' turns, in turns, and the ratio of their rates."""
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "datasketch": []}
    for _ in range(rounds):
        for name, results in turns.items():
            results.append(_in_fresh_process(name, rows))
    ratios = [
        ours["rows_per_s"] / theirs["rows_per_s"]
        for ours, theirs in zip(turns["ours"], turns["datasketch"], strict=True)
    ]
    return {
        "rows": rows,
        **turns,
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _in_fresh_process(name: str, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--turn", name, "--rows", str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def turn(name: str, rows: int) -> dict[str, float]:
    """Rows a second, CPU and peak memory above the texts, and how many planted pairs are found."""
    texts, planted = corpus(rows)
    search = {"ours": ours, "datasketch": datasketch}[name]
    search(texts[:300])  # imports, tables
    held = peak_bytes()
    begin, cpu = time.perf_counter(), time.process_time()
    found = search(texts)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "rows_per_s": len(texts) / seconds,
        "cpu_s": cpu,
        "peak_mib": (peak_bytes() - held) / 2**20,
        "planted": len(planted),
        "planted_found": len(planted & found),
        "others_found": len(found - planted),
    }


def ours(texts: list[str]) -> set[int]:
    """Rows that have an earlier row nearly the same."""
    from fastsft.data.minhash import pairs
    from fastsft.data.signatures import Signatures

    pieces = (texts[at : at + 256] for at in range(0, len(texts), 256))
    signatures = Signatures.join([Signatures.of(piece) for piece in pieces])
    return set(pairs(signatures, THRESHOLD)[0].tolist())


def datasketch(texts: list[str]) -> set[int]:
    """The same by datasketch; a candidate counts when its estimate reaches the threshold."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    kept, found = [], set()
    for row, text in enumerate(texts):
        size = 5 if text.isascii() else 3
        grams = {text[at : at + size].encode() for at in range(len(text) - size + 1)}
        kept.append(MinHash(num_perm=128))
        kept[row].update_batch(list(grams))
        if any(kept[row].jaccard(kept[other]) >= THRESHOLD for other in index.query(kept[row])):
            found.add(row)
        index.insert(row, kept[row])
    return found


def corpus(rows: int) -> tuple[list[str], set[int]]:
    """Texts of Alpaca-like lengths, two of three English, and which rows are planted copies."""
    rng = random.Random(7)
    syllables = _SYLLABLES.split()
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4000)]
    texts: list[str] = []
    planted = set()
    for row in range(rows):
        if row and rng.random() < COPIES:
            texts.append(changed(rng.choice(texts), rng))
            planted.add(row)
            continue
        length = max(40, min(6000, round(rng.lognormvariate(0, 0.8) * 600)))
        is_english = rng.random() < 2 / 3
        made = " ".join(rng.choices(words, k=length // 4)) if is_english else chinese(rng, length)
        texts.append(made[:length])
    return texts, planted


def chinese(rng: random.Random, length: int) -> str:
    return "".join(chr(0x4E00 + int(2000 * rng.random() ** 2)) for _ in range(length // 3))


def changed(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text))
    return text[:at] + ("q" if text[at] != "q" else "x") + text[at + 1 :]


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
