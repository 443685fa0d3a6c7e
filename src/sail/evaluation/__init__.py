"""Did alignment do anything: intervals (stats) and a finished run against its reference (final)."""
