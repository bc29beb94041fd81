"""Whatever JSON a client sends, OpenAI's dialect answers and nothing breaks: a message that is refused changes nothing."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.protocols.dialect import Close, Command, End, Say
from server.protocols.openai_realtime import KNOWN, Realtime
from server.protocols.openai_session import Configuration
from streaming.errors import UnknownModel
from streaming.types import Options

NAMES = st.sampled_from(
    [
        "type",
        "audio",
        "input",
        "format",
        "rate",
        "transcription",
        "model",
        "language",
        "languages",
        "keywords",
        "prompt",
        "delay",
        "turn_detection",
        "threshold",
        "prefix_padding_ms",
        "silence_duration_ms",
        "eagerness",
        "idle_timeout_ms",
        "noise_reduction",
        "strength",
        "include",
        "create_response",
        "interrupt_response",
        "input_audio_format",
        "input_audio_transcription",
        "input_audio_noise_reduction",
        "session",
        "item_id",
        "event_id",
        "id",
        "expires_at",
        "object",
        "modalities",
        "client_secret",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "en",
            "auto",
            "toy",
            "transcription",
            "realtime",
            "server_vad",
            "semantic_vad",
            "audio/pcm",
            "audio/pcmu",
            "pcm16",
            "g711_ulaw",
            "high",
            "low",
            "xhigh",
            "near_field",
            "item.input_audio_transcription.logprobs",
            "AAAA",
        ]
    ),
    st.sampled_from([8000, 24000, 48000, 300, 0, 1]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=5)),
    max_leaves=12,
)
INPUTS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("format", "transcription", "turn_detection", "noise_reduction"), VALUES
    ),
)
SESSIONS = st.one_of(
    VALUES,
    st.builds(
        lambda found, more: {**more, "type": "transcription", "audio": {"input": found}},
        INPUTS,
        st.dictionaries(NAMES, VALUES, max_size=2),
    ),
    st.dictionaries(NAMES, VALUES, max_size=6),
)
TYPES = st.one_of(st.sampled_from(KNOWN), st.text(max_size=5), SCALARS)
OTHERS = st.builds(
    lambda kind, more: {**more, "type": kind}, TYPES, st.dictionaries(NAMES, VALUES, max_size=4)
)
UPDATES = st.builds(
    lambda kind, session: {"type": kind, "session": session},
    st.sampled_from(["session.update", "transcription_session.update"]),
    SESSIONS,
)
MESSAGES = st.one_of(
    UPDATES.map(json.dumps),
    OTHERS.map(json.dumps),
    VALUES.map(json.dumps),
    st.text(max_size=12),
    st.binary(max_size=8),
)


def check(options: Options) -> None:
    if options.model not in ("", "toy"):
        raise UnknownModel("no such model")


def said(commands: list[Command]) -> list[dict[str, Any]]:
    return [json.loads(command.text) for command in commands if isinstance(command, Say)]


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=6), beta=st.booleans())
def test_any_message_is_answered_and_none_breaks_the_session(
    messages: list[str | bytes], beta: bool
) -> None:
    dialect = Realtime(Configuration(), check=check, beta=beta)
    dialect.begin()
    for message in messages:
        before = dialect._configuration
        commands = dialect.receive(dialect.read(message), 0.0)
        assert not any(isinstance(command, Close) for command in commands)
        found = said(commands)
        if any(each["type"] == "error" for each in found):
            assert dialect._configuration == before, "a refused update is refused whole"
        for each in found:
            if each["type"].endswith("session.updated"):
                # What is told is what holds: sent back, it changes nothing.
                again = {
                    "type": each["type"].replace("updated", "update"),
                    "session": each["session"],
                }
                held = dialect._configuration
                (answer, *_) = said(dialect.receive(dialect.read(json.dumps(again)), 0.0))
                assert answer["type"] == each["type"], answer
                assert dialect._configuration == held
        if any(isinstance(command, End) for command in commands):
            return
