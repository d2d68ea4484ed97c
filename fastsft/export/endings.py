"""Tells which tokens llama.cpp ends a generation at, and says so in a GGUF.  Reads no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastsft.errors import ExportError


def _texts(line: str) -> frozenset[str]:
    return frozenset(line.split())


ENDS: Final = _texts(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["
)
"""Texts that llama.cpp takes for the end of a generation and for control tokens, whatever the
file says of them.

Source: llama.cpp 0c1e570 src/llama-vocab.cpp, "maintain a list of tokens that cause
end-of-generation" in `llama_vocab::impl::load`, as are the two below.
"""

FILE_ENDS: Final = _texts(
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> "
    "<reponame> <|file_sep|>"
)
"""Texts of code models that llama.cpp ends a generation at as well."""

CONTROLS: Final = _texts(
    "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> "
    "<|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> "
    "<|code_suffix|> <|suffix|> <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> "
    "▁<MID> <|code_middle|> <|middle|> <|channel|> <|message|> <|start|> <|constrain|>"
)
"""Texts that llama.cpp takes for control tokens, without ending at them."""

ODD: Final = {"</s>": {"<|tool_response>", "<|plamo:eos|>"}, "<|end|>": {"<|call|>", "<|calls|>"}}
"""Texts at which llama.cpp does not end after all beside a token of these."""


@dataclass(frozen=True)
class Endings:
    """The end ids that a GGUF names, and every id that llama.cpp ends at."""

    eos_id: int
    eot_id: int
    eom_id: int | None
    all_ids: frozenset[int]


def of(ids: Mapping[str, int], stop_ids: Sequence[int]) -> Endings:
    """How llama.cpp is told to end at every stop id, the one that ends a turn first.

    `ids` has the id of each text of the vocabulary.  llama.cpp ends at tokens that it knows by
    their text, and at three that a file may name.
    Raises: ExportError when a stop id would need a fourth.
    """
    known = {ids[text] for text in ENDS | FILE_ENDS if text in ids}
    known -= {ids[text] for text, others in ODD.items() if text in ids and others & ids.keys()}
    eos, *others = stop_ids
    unknown = [token_id for token_id in others if token_id not in known]
    if len(unknown) > 2:
        texts = {token_id: text for text, token_id in ids.items()}
        raise ExportError(
            f"llama.cpp cannot stop at {len(unknown)} of the stop tokens besides "
            f"{texts[eos]!r}: {', '.join(repr(texts[token_id]) for token_id in unknown)}",
            where="generation_config.json",
            hint="list at most two stop tokens of the model's own in eos_token_id",
        )
    eot, eom = [*unknown, None, None][:2]
    return Endings(
        eos_id=eos,
        eot_id=eos if eot is None else eot,
        eom_id=eom,
        all_ids=frozenset(known | {*stop_ids}),
    )
