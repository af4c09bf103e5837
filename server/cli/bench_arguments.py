"""The words of `anser bench`, without what it takes to measure."""

from __future__ import annotations

import argparse

from rwkv_core.instruction_sets import INSTRUCTION_SETS
from server.cli import argument_types

DESCRIPTION = """\
Measure models on this machine's processor: files, or names as `anser list` shows them. Prefill and
decode are of random tokens from an empty state, as llama-bench does it; the table is Markdown.

With --quality: perplexity on a text, divergence from the float32 model, and greedy texts.

With --chat: chats over HTTP, with and without thinking, on a server of their own: what each turn
reads and reuses, how soon it answers, and the server's memory.

With --load N: N such chats at once, compared with each of them alone.

With --tables: memory by model, and speed, memory and time to first token by turn of a chat, beside
llama.cpp's server if --peer names one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="FILE|NAME",
        type=argument_types.model_name,
        nargs="+",
        help="what to measure",
    )
    for short, dest, help in (
        ("-p", "prompt_tokens", "tokens of the prompt (512)"),
        ("-n", "decode_tokens", "tokens to decode (64), or the most that a reply may have"),
        ("-r", "repetitions", "repetitions of each measurement, or chats with --tables (3)"),
        ("-t", "threads", "threads (default: the physical cores)"),
        ("-b", "batch", "decode so many sequences at once, too"),
        ("--long", "long", "decode after 100 and after so many tokens of text, too"),
    ):
        parser.add_argument(short, dest=dest, metavar="N", type=argument_types.count, help=help)
    parser.add_argument("--isa", choices=INSTRUCTION_SETS, help="use no better instruction set")
    parser.add_argument(
        "--peer",
        metavar="FILE",
        help="a llama-bench to run by turns on the same model; with --tables: a llama-server",
    )
    parser.add_argument("--quality", action="store_true", help="measure quality, not speed")
    parser.add_argument("--text", metavar="FILE", help="with --quality: what to read")
    parser.add_argument(
        "--reference",
        metavar="FILE|NAME",
        help="with --quality: compare with this model in float32 (default: the model itself)",
    )
    parser.add_argument("--chat", action="store_true", help="measure the turns of chats")
    parser.add_argument(
        "--load", metavar="N", type=argument_types.count, help="measure N chats at once"
    )
    parser.add_argument(
        "--tables", action="store_true", help="measure what models cost in memory and time"
    )
    parser.add_argument(
        "--turns",
        metavar="N,...",
        type=_turns,
        help="with --chat: a chat of so many turns each (10,100); with --load or --tables: of each",
    )
    parser.add_argument(
        "--think",
        metavar="true|false",
        type=argument_types.yes_or_no,
        help="with --chat: only with or without thinking (both); with --load: with it",
    )
    parser.add_argument(
        "--pause",
        metavar="S",
        type=argument_types.seconds,
        help="with --chat: seconds between turns (1 with thinking, else 0)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="with --chat and --tables: draw it")
    parser.add_argument("--json", action="store_true", help="all numbers, one object a line")


def _turns(value: str) -> tuple[int, ...]:
    counts = tuple(argument_types.count(each) for each in value.split(","))
    if min(counts) < 2:
        raise argparse.ArgumentTypeError("a chat has at least 2 turns")
    return counts
