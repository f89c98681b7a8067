"""Every error the package raises on purpose.

NightschoolError         caught at the edges: the CLI prints it as one line
├── FileFormatError      a GGUF, adapter, checkpoint or data file is not what it says it is
├── DataError            lines of a data set that cannot be used, all of them listed at once
├── UnsupportedModel     a valid file, but an architecture or tensor type we do not know
├── AdapterMismatch      an adapter does not fit the base it is asked to sit on
├── NotFound             a model, adapter, run or file that a name points to is not there
├── NameTaken            a name that belongs to something else already, or cannot be a name
├── NotEnoughMemory      a plan that does not fit into the free memory of this machine
├── EngineError          llama.cpp could not be started, died, or refused a request
│   └── ContextFull      a conversation that is longer than the engine's context
├── JobState             a job is not in a state for what is asked of it
├── StoreError           the database of this home is damaged, too new, or held by another command
└── DownloadError        a pull that failed: unreachable, refused, or the bytes do not match
"""


class NightschoolError(Exception):
    """Says what went wrong and what to do next, in words for the person at the keyboard."""


class FileFormatError(NightschoolError):
    """A file is not what it says it is."""


class DataError(NightschoolError):
    """A data set has lines that cannot be used; the message lists them all."""


class UnsupportedModel(NightschoolError):
    """A valid file with an architecture or a tensor type that is not supported."""


class AdapterMismatch(NightschoolError):
    """An adapter does not fit the base."""


class NotFound(NightschoolError):
    """What a name points to is not there."""


class NameTaken(NightschoolError):
    """A name belongs to something else already, or cannot be one."""


class NotEnoughMemory(NightschoolError):
    """The plan needs more memory than is free."""


class EngineError(NightschoolError):
    """The engine could not be started, died, or refused a request."""


class ContextFull(EngineError):
    """A request needs more tokens than the engine's context holds."""


class JobState(NightschoolError):
    """A job is not in a state for what is asked of it."""


class DownloadError(NightschoolError):
    """A download failed, or its bytes are not the promised ones."""


class StoreError(NightschoolError):
    """The database is damaged, of a later version, or held by another command."""
