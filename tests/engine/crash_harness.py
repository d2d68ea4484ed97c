"""A fork server: one process imports the training stack once; each child trains a real run.

The children run `fastsft.engine.__main__.main`, the whole of it, on a run folder.  The server
computes nothing itself and stays single-threaded, so that its forks are sound.
"""

import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastsft import events
from fastsft.run import Run

POLL_S = 0.01
LONGEST_S = 300
TIMINGS = ("_runtime", "_per_second")


# The tests' side.


@dataclass(frozen=True)
class Ended:
    """A child that is gone: its exit code (negative: the signal) and the events it wrote."""

    code: int
    events: list[events.Event]

    def all(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def only(self, kind: type[events.Event]) -> Any:
        (event,) = self.all(kind)
        return event

    @property
    def steps(self) -> list[int]:
        return [event.step for event in self.all(events.Step)]


class Child:
    """A training child that may still be running."""

    def __init__(self, server: "Server", run: Run, pid: int, offset: int) -> None:
        self.server, self.run, self.pid, self._offset = server, run, pid, offset

    def told(self) -> list[events.Event]:
        return [event for event, _ in events.read(self.run.events_path, offset=self._offset)]

    def is_gone(self) -> bool:
        return self.server.ask("poll", pid=self.pid)["code"] is not None

    def until(self, is_seen: Any) -> bool:
        """Wait for an event; False when the child ended before."""
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            is_gone = self.is_gone()
            if any(is_seen(event) for event in self.told()):
                return True
            if is_gone:
                return False
            time.sleep(POLL_S)
        raise TimeoutError(f"{self.run.folder}: nothing after {LONGEST_S} s")

    def signal(self, number: int) -> None:
        if not self.is_gone():
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        code = self.server.ask("wait", pid=self.pid)["code"]
        return Ended(code, self.told())


class Server:
    """The fork server's handle."""

    def __init__(self, log: Path) -> None:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(log.parent / "datasets")}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **offline},
            )
        self._answer()  # ready

    def ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server is gone"
        return json.loads(line)

    def start(self, run: Run, sabotage: Mapping[str, Any] | None = None) -> Child:
        """Train or resume a run; `sabotage`: a function of sabotage.py -> its arguments."""
        offset = run.events_path.stat().st_size if run.events_path.exists() else 0
        pid = self.ask("start", folder=str(run.folder), sabotage=sabotage or {})["pid"]
        return Child(self, run, pid, offset)

    def train(self, run: Run, sabotage: Mapping[str, Any] | None = None) -> Ended:
        """Train or resume a run, until the child ends."""
        return self.start(run, sabotage).wait()

    def digest(self, run: Run) -> dict[str, Any]:
        """What two runs must share to be called identical, by value."""
        found: dict[str, Any] = self.ask("digest", folder=str(run.folder))
        assert "error" not in found, found["error"]
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def phase(child: Ended, run: Run) -> str:
    """What a killed child was at, by its last phase and by what it left half done."""
    phases = [event.name for event in child.all(events.Phase)]
    at = phases[-1] if phases else "load"
    left = [path.name for path in run.checkpoints.glob(".tmp-*")]
    if at == "train" and any(name.startswith(".tmp-old-") for name in left):
        return "rotate"
    if at == "train" and left:
        return "save"
    if (run.folder / ".tmp-adapter").exists() or run.is_finished:
        return "result"
    return at


# The server's side.


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_stack()
    codes: dict[int, int | None] = {}
    for answer in _answers(codes):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_stack() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    import bitsandbytes
    import datasets
    import peft
    import transformers
    import trl
    from transformers.models.qwen2 import modeling_qwen2

    import fastsft.engine.session

    lazy = (
        (transformers, "AutoModelForCausalLM AutoTokenizer BitsAndBytesConfig Trainer"),
        (peft, "LoraConfig get_peft_model"),
        (trl, "SFTConfig SFTTrainer"),
        (datasets, "Dataset"),
        (bitsandbytes, "nn"),
        (modeling_qwen2, "Qwen2ForCausalLM"),
        (fastsft.engine.session, "Session"),
    )
    for module, names in lazy:
        for name in names.split():
            getattr(module, name)
    _warm_caches(torch, modeling_qwen2)
    gc.collect()
    gc.freeze()  # a child's collections pass over what was imported here


def _warm_caches(torch: Any, modeling: Any) -> None:
    """Fill what is computed once a process, without touching a number."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("qwen2")
    with torch.device("meta"):
        model = modeling.Qwen2ForCausalLM(modeling.Qwen2Config(num_hidden_layers=1))
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _answers(codes: dict[int, int | None]) -> Iterator[Any]:
    yield "ready"
    for line in sys.stdin:
        what, asked = json.loads(line)
        if what == "start":
            pid = os.fork()
            if pid == 0:
                _child(Path(asked["folder"]), asked["sabotage"])
            codes[pid] = None
            yield {"pid": pid}
        elif what == "digest":
            yield _in_a_fork(Path(asked["folder"]))
        else:
            yield {"code": _code(asked["pid"], codes, 0 if what == "wait" else os.WNOHANG)}


def _code(pid: int, codes: dict[int, int | None], flags: int) -> int | None:
    """The exit code, once the child is gone."""
    if codes[pid] is None:
        done, status = os.waitpid(pid, flags)
        codes[pid] = os.waitstatus_to_exitcode(status) if done else None
    return codes[pid]


def _child(folder: Path, sabotages: Mapping[str, Mapping[str, Any]]) -> None:
    """Become `python -m fastsft.engine FOLDER`, as `fastsft.launch` would start it."""
    code = 70
    try:
        log = os.open(folder / "train.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["fastsft.engine", str(folder)]
        import sabotage

        for name, arguments in sabotages.items():
            getattr(sabotage, name)(**arguments)
        from fastsft.engine.__main__ import main

        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _in_a_fork(folder: Path) -> Any:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found: Any = digest(folder)
        except BaseException:
            found = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(pid, 0)
    return answer


def digest(folder: Path) -> dict[str, Any]:
    """Hashes of all that a run ends with; timings left out."""
    import torch
    from safetensors.torch import load_file
    from transformers.trainer_pt_utils import safe_globals

    def state(name: str) -> str:
        with safe_globals():
            return _hash(torch.load(last / name, weights_only=True))

    last = max(folder.glob("checkpoints/step-*"))
    trainer = json.loads((last / "trainer_state.json").read_text())
    history = [
        {key: value for key, value in entry.items() if not key.endswith(TIMINGS)}
        for entry in trainer["log_history"]
    ]
    return {
        "checkpoint": last.name,
        "result": _hash(load_file(folder / "adapter" / "adapter_model.safetensors")),
        "adapter": _hash(load_file(last / "adapter_model.safetensors")),
        "optimizer": state("optimizer.pt"),
        "scheduler": state("scheduler.pt"),
        "rng": state("rng_state.pth"),
        "progress": json.loads((last / "fastsft.json").read_text()),
        "step": trainer["global_step"],
        "epoch": trainer["epoch"],
        "flops": trainer["total_flos"],
        "history": sha256(json.dumps(history).encode()).hexdigest(),
    }


def _hash(value: Any) -> str:
    return sha256(b"".join(_bytes(value))).hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    """Every leaf with its place, type and exact bytes."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _bytes(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _bytes(item)
    elif hasattr(value, "numpy"):
        yield f"{value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes()
    elif hasattr(value, "tobytes"):
        yield f"{value.dtype}".encode() + value.tobytes()
    else:
        yield repr(value).encode()


if __name__ == "__main__":
    serve()
