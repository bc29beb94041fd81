"""One tree of faults. Names say the fault; messages say what was found, what was expected and what to do.

::

    OpenSpeechError
    ├── InputError                what the client sent cannot be served as it is
    │   ├── AudioError            the bytes are not audio that can be decoded
    │   │   ├── NoAudio           nothing in it, or no audio stream
    │   │   ├── TooShort          less audio than any word takes
    │   │   └── TooLong           more audio than is allowed
    │   ├── Unsupported           the chosen model or this build cannot do that
    │   ├── NotAllowed            the operator's settings forbid it
    │   └── UnknownModel          no such name in the catalogue
    ├── ModelUnavailable          the model is known but cannot be loaded or fetched
    │   ├── ModelGone             it was unloaded while the request waited; asking again helps
    │   ├── ModelBusy             it is being loaded, downloaded or used, and cannot be taken away now
    │   └── ModelResting          its process died again and again; `retry_after` seconds
    ├── StorageFull               no room on a disk for what was sent or asked for
    ├── Overloaded                too much to do; `retry_after` seconds
    └── BackendError              the recogniser failed; the next request may succeed
        └── Hung                  it came to no end, as it would with the same audio again
"""

from __future__ import annotations


class OpenSpeechError(Exception):
    """Base of all. `str(error)` is a sentence without a capital or full stop that ends in the remedy."""

    param: str | None = None
    """The request field at fault, by its wire name, where one is."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param


class InputError(OpenSpeechError):
    """What the client sent cannot be served as it is; sending it again will not help."""


class AudioError(InputError):
    """The bytes are not audio that can be decoded."""

    param = "file"


class NoAudio(AudioError):
    """The file is empty or has no audio stream."""


class TooLong(AudioError):
    """The recording holds more audio than is allowed."""


class TooShort(AudioError):
    """The recording holds less audio than a word takes."""


class Unsupported(InputError):
    """The chosen model, or this build, cannot do what was asked; the message names what can."""


class NotAllowed(InputError):
    """The settings of the server forbid it."""


class UnknownModel(InputError):
    """The catalogue has no such name."""

    param = "model"


class ModelUnavailable(OpenSpeechError):
    """The model is known but cannot be loaded or fetched; the message says why and what to do."""

    param = "model"


class ModelGone(ModelUnavailable):
    """The model was unloaded while the request waited for it."""


class ModelBusy(ModelUnavailable):
    """The model is being loaded, downloaded or used: what was asked would take it from somebody."""


class ModelResting(ModelUnavailable):
    """The model's process died again and again; it is started anew after a rest."""

    def __init__(self, message: str, *, retry_after: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after
        """Seconds after which trying again is sensible."""


class StorageFull(OpenSpeechError):
    """No room on a disk for what was sent or asked for; the message says how much is missing where that is known."""


class Overloaded(OpenSpeechError):
    """Too much to do at the moment."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which trying again is sensible."""


class BackendError(OpenSpeechError):
    """The recogniser failed on this piece of work."""


class Hung(BackendError):
    """The recogniser came to no end on this piece of work; it would not with the same again."""
