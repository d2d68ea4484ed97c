"""The command line: parse, import late, call one function, print."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastsft.errors import FastsftError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Qwen2.5, Llama and Mistral on one consumer GPU, and prove every step.",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder under runs/.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="File, folder or Hugging Face dataset id.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders are made.")]
AsJson = Annotated[bool, typer.Option("--json", help="The answer as JSON on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key; may be repeated."),
]


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb."""


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped name (`fastsft recipes`) or a YAML file.")
    ] = None,
    data: Data = None,
    overrides: Set = None,
    runs: Runs = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a stopped run.")
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change", help="On resume: recipe, data, base, tokens or stack may differ."
        ),
    ] = None,
) -> None:
    """Fine-tune a model by a recipe; prints the run folder."""
    from fastsft import commands

    if resume is not None:
        commands.resume(resume, allow_change or [], given=[recipe, data, overrides])
    else:
        commands.train(recipe, data, overrides or [], runs)


@app.command()
def check(
    recipe: Annotated[
        str, typer.Argument(help="A shipped name (`fastsft recipes`) or a YAML file.")
    ],
    data: Data = None,
    overrides: Set = None,
    json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page too.")
    ] = None,
    row: Annotated[
        str | None, typer.Option("--row", metavar="FILE:LINE", help="Show only this row, in full.")
    ] = None,
) -> None:
    """Prove what would be trained, in seconds and without torch; exit code 2 if it is refused."""
    from fastsft import checking

    checking.check(recipe, data, overrides or [], json=json, html=html, row=row)


@app.command()
def plan(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped name (`fastsft recipes`) or a YAML file.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="CARD", help="Such as rtx-4090; not this one.")
    ] = None,
    vram: Annotated[
        float | None, typer.Option("--vram", metavar="GIB", min=0.1, help="Any card of this size.")
    ] = None,
    data: Data = None,
    overrides: Set = None,
    history: Annotated[
        bool, typer.Option("--history", help="Predicted against measured, for this machine's runs.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Say whether a recipe fits a card, how long it takes, and what would be fastest."""
    from fastsft import planning

    if history:
        planning.history(json=json)
    else:
        planning.plan(recipe, data, overrides or [], gpu=gpu, vram_gib=vram, json=json)


@app.command()
def bench(
    recipe: Annotated[
        str, typer.Argument(help="A shipped name (`fastsft recipes`) or a YAML file.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="Another engine, or another recipe.")
    ] = None,
    data: Data = None,
    overrides: Set = None,
    steps: Annotated[
        int, typer.Option("--steps", min=3, help="Measured steps, after the warm-up.")
    ] = 20,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Steps not measured.")] = 10,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Fresh processes for each arm.")
    ] = 3,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="The base's real shape with random weights.")
    ] = False,
    vram_cap: Annotated[
        float | None,
        typer.Option("--vram-cap", metavar="GIB", min=0.1, help="Let a card stand for a smaller."),
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help="Time a merge and a q8_0 GGUF too.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Where results are kept.")] = Path("bench"),
    share: Annotated[
        Path | None,
        typer.Option(
            "--share", metavar="FILE", help="One file for others, without anything personal."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure tokens/s and memory of a recipe, against a peer on the same tokens."""
    from fastsft import benching

    benching.bench(
        recipe,
        data,
        overrides or [],
        benching.Asked(
            against=against,
            steps=steps,
            warmup=warmup,
            repeats=repeats,
            is_synthetic=synthetic,
            vram_cap_gib=vram_cap,
            with_export=export,
            out=out,
            share=share,
        ),
        json=json,
    )


@app.command()
def export(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="merged: 16-bit safetensors. merged-4bit: NF4 by bitsandbytes. "
            "gguf: for llama.cpp and Ollama. gguf-lora: the adapter alone, for the same.",
        ),
    ] = "merged",
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", metavar="TYPE,…", help="gguf: f32, f16, bf16, q8_0, q4_k_m, q5_k_m, …"
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="gguf: importance matrix of llama.cpp's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="merged: base, bfloat16, float16 or float32.")
    ] = None,
    max_shard: Annotated[
        float | None,
        typer.Option("--max-shard", metavar="GIB", min=0.001, help="merged: largest file."),
    ] = None,
    merge_base: Annotated[
        str | None,
        typer.Option(
            "--merge-base",
            help="stored: the 16-bit base. dequantised: the base as 4-bit training saw it.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an older export.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove it before calling it done.")
    ] = True,
    allow_synthetic: Annotated[
        bool, typer.Option("--allow-synthetic", help="Export a base of random weights, to time it.")
    ] = False,
) -> None:
    """Export a finished run and prove that it behaves as trained; prints the folder."""
    from fastsft import exporting

    exporting.export(
        run,
        exporting.Asked(
            to=to,
            quants=quant,
            imatrix=imatrix,
            out=out,
            dtype=dtype,
            max_shard_gib=max_shard,
            merge_base=merge_base,
            overwrite=overwrite,
            check=check,
            allow_synthetic=allow_synthetic,
        ),
    )


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="An export's folder, or a file in it.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="The run, where the export lies outside it.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Prove that an export behaves as trained; exit code 5 if it does not."""
    from fastsft import exporting

    exporting.verify_export(path, run, as_json=json)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="An export's folder.")],
    repository: Annotated[str, typer.Argument(help="Such as user/name; HF_TOKEN lets you in.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Upload what did not pass `fastsft verify`.")
    ] = False,
) -> None:
    """Upload an export to the Hugging Face Hub; prints its address."""
    from fastsft import exporting

    exporting.push_export(path, repository, private=private, unverified=unverified)


@app.command()
def chat(
    run: RunFolder,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base without adapter.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="0 is greedy.")
    ] = 0.0,
) -> None:
    """Talk to a finished adapter, or to its base; one message a line."""
    from fastsft import commands

    commands.chat(run, base=base, system=system, max_tokens=max_tokens, temperature=temperature)


@app.command()
def recipes(
    schema: Annotated[bool, typer.Option("--schema", help="Every key with its meaning.")] = False,
    show: Annotated[str | None, typer.Option("--show", help="Print one recipe, complete.")] = None,
    json: AsJson = False,
) -> None:
    """List the shipped recipes."""
    from fastsft import commands

    commands.recipes(schema=schema, show=show, json=json)


@app.command()
def demo(
    runs: Runs = Path("runs"),
    engine: Annotated[str, typer.Option("--engine", help="unsloth or reference.")] = "unsloth",
) -> None:
    """Fine-tune the tiny base that ships with fastsft, and prove it; minutes on a CPU."""
    from fastsft.demo import tour

    tour.demo(runs, engine)


@app.command()
def doctor(json: AsJson = False) -> None:
    """Check versions, GPU and driver; name what is missing and its cure."""
    from fastsft import commands

    commands.doctor(json=json)


def main() -> None:
    """The edge: every error becomes a line with its hint and exit code."""
    # Being ended is being interrupted: a training child saves and stops, and is not left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except FastsftError as error:
        if "--debug" in sys.argv:
            raise
        from fastsft import console

        console.error(error)
        sys.exit(error.exit_code)
