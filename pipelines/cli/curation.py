"""What ``vthink data curate`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...components.data_prep.curation.curate import Estimate, Summary

UNFINISHED = 3
"""Exit code of a curation that has something left to do: the budget is spent, or calls failed."""
_SHOWN_FAILURES = 5


def print_estimate(total: Estimate) -> None:
    """What a curation would take."""
    print(f"{total.items} videos or questions, {total.items - total.decided} of them to do")
    print(f"calls: {total.min_calls:,} to {total.max_calls:,}")
    if total.max_usd:
        print(f"cost: about ${total.min_usd:.2f}, at most ${total.max_usd:.2f} (already spent: ${total.spent_usd:.2f})")
    else:
        print("cost: no prices are set (curation.teacher.usd_per_million_input_tokens, …)")


def print_summary(summary: Summary, output: Path) -> None:
    """What came of a curation."""
    account = summary.account
    print(f"{output}: {summary.rows} rows of {summary.items} videos or questions")
    if summary.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary.dropped.most_common())
        print(f"dropped {summary.dropped.total()}: {reasons}; {output.with_suffix('.dropped.jsonl')} says why")
    calls = ", ".join(f"{role} {count}" for role, count in sorted(account.calls.items())) or "none"
    print(f"calls: {calls}; {account.failed_attempts} attempts failed, {summary.replayed} answers from the journal")
    tokens = f"{account.input_tokens:,} tokens in, {account.output_tokens:,} out"
    print(f"{tokens}; ${account.usd:.4f} spent on this output, earlier runs included")
    for failure in summary.failed[:_SHOWN_FAILURES]:
        print(f"failed: {failure}")
    if len(summary.failed) > _SHOWN_FAILURES:
        print(f"and {len(summary.failed) - _SHOWN_FAILURES} more failed")
    if not summary.complete:
        reason = f"{account.stop_reason}; " if account.stop_reason else ""
        print(f"{reason}{summary.items - summary.decided} are left: repeat the command to go on")


def cost_so_far(now: Summary) -> str:
    """Calls and money, for the progress."""
    return f"{now.account.calls.total():,} calls, ${now.account.usd:.2f}"
