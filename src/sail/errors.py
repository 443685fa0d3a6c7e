"""The errors sail raises on purpose. Every message names the cause and the way out."""


class SailError(Exception):
    """Root of every error a user can cause; the command line prints its message without a traceback."""


class ConfigError(SailError):
    """A setting, or a combination of settings, that cannot be run."""


class DataError(SailError):
    """A data file or row that cannot be used; names file, row, field and cause."""


class OracleError(SailError):
    """An oracle that raised, or answered with something that is not a preference; names the rows."""


class CheckpointError(SailError):
    """A checkpoint that cannot be continued from."""


class TrainingError(SailError):
    """A run that cannot go on: it diverged, the disk is full, another process has died; says from where it continues."""


class GenerationError(SailError):
    """A generation back-end that cannot be reached, or returned something else than what was sampled."""


class MissingExtraError(SailError):
    """An optional dependency is not installed; says what to install."""
