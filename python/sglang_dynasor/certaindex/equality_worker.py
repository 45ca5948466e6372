"""The process behind `equality.MathEquality`: only here are sympy and math-verify imported.

Run as `python equality_worker.py SECONDS MEMORY_BYTES`. Standard input is a socket, used both
ways: the worker sends one byte when it is ready, then reads one JSON pair of answers a line and
sends "1" (equal) or "0". It ends with its parent, whose end of the socket closes.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import sys

from latex2sympy2_extended.math_normalization import (  # type: ignore[import-untyped]
    NormalizationConfig,
)
from math_verify import (  # type: ignore[import-untyped]
    LatexExtractionConfig,
    parse,
    verify,
)

# The defaults drop units ("5 kg" would equal "5 cm"), and fall back to the last number in a text
# that they cannot read. An answer that is not wholly understood is to equal nothing.
_WHOLE_ANSWER = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, malformed_operators=True, nits=True
        )
    )
]
# A decimal is the number it writes, as in canonical_key: 1.414214 is not the root of two. Twelve
# places leave room for the noise of floating point only.
_DECIMAL_PLACES = 12


def equal(first: str, second: str) -> bool:
    """Say whether math-verify finds two answers equal, whichever of them is the reference."""
    one, other = _parsed(first), _parsed(second)
    return _verified(one, other) and _verified(other, one)


def _parsed(answer: str) -> list:
    return parse(
        f"${answer}$",
        extraction_config=_WHOLE_ANSWER,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )


def _verified(reference: list, answer: list) -> bool:
    return verify(reference, answer, float_rounding=_DECIMAL_PLACES, timeout_seconds=0)


def main(seconds: float, memory_bytes: int) -> None:
    """Answer questions until the parent closes its end.

    The parent kills a worker that is too slow. `seconds` is for the parent that died meanwhile:
    the default action of SIGALRM then ends the worker, even inside a long computation.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.CRITICAL)
    channel = socket.socket(fileno=sys.stdin.fileno())
    equal("x+1", "1+x")  # the first question builds the grammar's tables
    channel.sendall(b"r")
    for line in channel.makefile("rb"):
        first, second = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        verdict = equal(first, second)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(b"1" if verdict else b"0")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
