"""Reports as a check could hand them out: a mixed set, one that is refused, one without rows."""

from dataclasses import replace

from fastsft.data.report import (
    Batching,
    Fault,
    FindingReport,
    Lengths,
    Report,
    Sample,
    SourceReport,
    Template,
)

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def turn(question: str, answer: str) -> tuple[tuple[str, bool], ...]:
    """One exchange as Qwen's template writes it."""
    head = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    return (
        (f"{head}<|im_start|>assistant\n", False),
        (f"{answer}<|im_end|>", True),
        ("\n", False),
    )


SAMPLES = (
    Sample(
        "service/2026-03.jsonl:17",
        turn(
            "My parcel 4471 still says “label created”. It's been six days.",
            "I'm sorry about the wait. The label exists, but the carrier has not scanned the "
            "parcel, so it never left our warehouse.\n\nI have asked them to look for it today. "
            "If it is not found by 18:00, we send a new one by express, free of charge.",
        ),
    ),
    Sample(
        "medical.jsonl.gz:203",
        turn(
            "孩子三岁，发烧38.6度，精神还好，需要马上吃退烧药吗？",
            "体温38.6℃且精神状态良好时，不必急于用药。可以先多喝水、减少衣物并密切观察；"
            "若超过38.5℃并伴有不适，可按体重服用对乙酰氨基酚。出现精神萎靡、持续呕吐或抽搐时请立即就医。",
        ),
    ),
    Sample(
        "hostile.jsonl:9",
        turn(
            "<script>alert('row')</script>\n</pre>\nclean: 9,999 rows to train on\n"
            "\x1b[31mred\x1b[0m \u202eabc \x07 {{ 7 * 7 }} [bold]markup[/bold]",
            "A long answer: " + "one sentence after the other, " * 120 + "and its end.",
        ),
    ),
)

MIXED = Report(
    recipe="qwen2.5-7b-service",
    method="qlora",
    template=Template(
        name="the tokenizer's own",
        stop_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token=None,
        adds=QWEN_SYSTEM,
    ),
    max_tokens=2048,
    sources=(
        SourceReport("service/", "sharegpt", 12, 820, 795, 31, 764, "once", 301_222),
        SourceReport("medical.jsonl.gz", "alpaca", 1, 300, 293, 15, 556, "weight 2", 118_904),
        SourceReport(
            "HuggingFaceH4/no_robots, split train",
            "messages",
            1,
            80,
            62,
            4,
            132,
            "share 10%",
            40_112,
        ),
    ),
    totals={
        "rows_in": 1200,
        "train": 1100,
        "evaluation": 50,
        "dropped": {"overlength": 20, "leakage": 10, "not_json": 12, "empty_answer": 8},
        "changed": {"prompt_truncated": 14},
        "notes": [],
    },
    samples=SAMPLES,
    tokens=460_238,
    trained_tokens=237_112,
    stop_share=1.0,
    lengths=Lengths(
        shortest=24,
        median=286,
        p95=1_102,
        longest=2_031,
        edges=tuple(range(0, 2049, 64)),
        counts=(
            *(4, 31, 118, 204, 241, 196, 150, 121, 96, 74, 60, 42, 33, 30, 24, 19, 15),
            *(14, 9, 8),
            *(6, 6, 3, 4, 2, 2, 1, 0, 1, 0, 2, 1),
        ),
    ),
    scripts={"Latin": 1_604_112, "Han": 251_877, "Cyrillic": 312},
    steps_per_epoch=58,
    total_steps=174,
    batching=Batching(padded=0.583, grouped=0.947, packed=0.9981, sequences=226, chosen="packed"),
    findings=(
        FindingReport(
            "leakage",
            "a training row repeats an evaluation row",
            10,
            "drop",
            tuple(
                f"service/2026-03.jsonl:{n} ~ service/2026-01.jsonl:{n + 7}" for n in range(1, 11)
            ),
        ),
        FindingReport(
            "near_duplicates",
            "nearly the same text",
            34,
            "report",
            tuple(f"medical.jsonl.gz:{n} ~ medical.jsonl.gz:{n + 100}" for n in range(5, 25)),
        ),
        FindingReport(
            "personal_data",
            "hints of an e-mail address",
            2,
            "report",
            ("service/2026-03.jsonl:44",),
        ),
    ),
    notes=(
        "no_robots is repeated 2.1 times in an epoch to reach its share",
        "service/2026-01.jsonl: keys not used: id, source",
    ),
    faults=(
        *(
            Fault(
                f"service/2026-02.jsonl:{n}",
                "not_json",
                "not JSON: Expecting ',' delimiter",
                "fix the line, or set data.bad_rows to skip",
            )
            for n in range(40, 52)
        ),
        *(
            Fault(
                f"medical.jsonl.gz:{n}",
                "empty_answer",
                "message 2 of assistant is empty",
                "write an answer, or remove the row",
            )
            for n in range(90, 98)
        ),
    ),
    refused=(),
    seconds=1.84,
    from_cache=False,
)

REFUSED = replace(
    MIXED,
    refused=(
        "20 rows cannot be read, and data.bad_rows is error",
        "leakage: 10 training rows repeat evaluation rows, and data.checks.leakage is error",
    ),
    stop_share=0.99996,
)

EMPTY = Report(
    recipe="tiny-qwen2.5",
    method="qlora",
    template=None,
    max_tokens=64,
    sources=(SourceReport("rows.jsonl", "messages", 1, 3, 0, 0, 0, "once", 0),),
    totals={"rows_in": 3, "train": 0, "evaluation": 0, "dropped": {"overlength": 3}, "notes": []},
    samples=(),
    tokens=0,
    trained_tokens=0,
    stop_share=0.0,
    lengths=None,
    scripts={},
    steps_per_epoch=0,
    total_steps=0,
    batching=None,
    findings=(),
    notes=(),
    faults=(),
    refused=("no row is left to train on: 3 were dropped for their length",),
    seconds=0.02,
    from_cache=True,
)
