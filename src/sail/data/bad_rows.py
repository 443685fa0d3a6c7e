"""What happens to bad rows: they stop the run before training, or (an option) are left out and counted."""

from __future__ import annotations

from sail.errors import ConfigError, DataError

SHOWN = 5
"""Bad rows that an error lists in full; the rest is counted."""


class BadRows:
    """Collects the bad rows of one pass over the data, so that a user can mend all of them at once.

    `policy` is "error" or "skip" (the setting `data.bad_rows`); another one raises ConfigError.
    """

    def __init__(self, policy: str) -> None:
        if policy not in ("error", "skip"):
            raise ConfigError(
                f"data.bad_rows is '{policy}'. Set it to error (stop the run) or skip (leave them out)."
            )
        self.policy = policy
        self.messages: list[str] = []

    def add(self, error: DataError) -> None:
        """Notes one bad row."""
        self.messages.append(str(error))

    def finish(self, good: int, source: str) -> list[str]:
        """The messages of the rows left out, after `good` usable rows of `source` were found.

        Raises DataError under "error" if any row was bad, and under both policies if no usable row is left.
        """
        bad, total = len(self.messages), good + len(self.messages)
        listed = "".join(f"\n  {message}" for message in self.messages[:SHOWN])
        first = f", the first {SHOWN}" if bad > SHOWN else ""
        if bad and self.policy == "error":
            raise DataError(
                f"{source}: {bad} of {total} rows cannot be used{first}:{listed}\n"
                "Mend them, or set data.bad_rows: skip to leave such rows out and count them."
            )
        if not total:
            raise DataError(f"{source}: there is not one row in it. Give a file or dataset with rows.")
        if not good:
            raise DataError(f"{source}: all {total} rows are bad, none is left{first}:{listed}\nMend them.")
        return self.messages
