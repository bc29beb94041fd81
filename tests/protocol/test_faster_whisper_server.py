"""faster-whisper-server's socket without sockets, models or time."""

import json

import pytest

from server.protocols.dialect import Close, Command, End, Hear, Open, Say
from server.protocols.faster_whisper_server import Endings, Transcript, parse
from streaming.errors import BackendError, InputError, ModelResting, Overloaded
from streaming.events import Failed, Final, Partial, SpeechStarted, SpeechStopped
from streaming.types import Word


def talk(**query: str) -> Transcript:
    dialect = Transcript(parse(query), Endings())
    assert isinstance(dialect.begin()[0], Open)
    return dialect


def hear(dialect: Transcript, seconds: float, lag: float = 0.0) -> list[Command]:
    return dialect.receive(dialect.read(bytes(round(seconds * 32_000))), lag)


def said(commands: list[Command]) -> list[str]:
    return [command.text for command in commands if isinstance(command, Say)]


def test_the_confirmed_transcript_grows_and_only_its_changes_are_told() -> None:
    dialect = talk(response_format="text")
    hear(dialect, 3.0)
    told = []
    for event in (
        SpeechStarted(0, 0),
        Partial(0, 1, "", " It was"),
        Partial(0, 2, " It", " was"),
        Partial(0, 3, " It", " is"),
        SpeechStopped(0, 16_000),
        SpeechStarted(1, 20_000),
        Partial(1, 1, " And", " so"),  # waits for the final before it
        Final(0, " It is.", (), 0, 16_000, "en"),
        Final(1, " And so on.", (), 20_000, 30_000, "en"),
        SpeechStarted(2, 40_000),
        SpeechStopped(2, 41_000),
        Failed(2, BackendError("out of memory")),
    ):
        told += said(dialect.encode(event, 0))
    assert told == ["It", "It is. And", "It is. And so on."]


def test_verbose_json_has_the_confirmed_words_only() -> None:
    dialect = talk(response_format="verbose_json", language="fr")
    hear(dialect, 2.0)
    dialect.encode(SpeechStarted(0, 0), 0)
    words = (Word(" Le", 1600, 3200, 0.9), Word(" chat", 3200, 8000, 0.5))
    assert json.loads(said(dialect.encode(Partial(0, 1, " Le", " chat", words), 0))[0]) == {
        "task": "transcribe",
        "language": "french",
        "language_code": "fr",
        "duration": 2.0,
        "text": "Le",
        "words": [{"word": " Le", "start": 0.1, "end": 0.2, "probability": 0.9}],
        "segments": [],
    }


def test_a_second_without_data_ends_it_and_all_before_is_finished_first() -> None:
    dialect = talk()
    assert dialect.patience == 1.0
    hear(dialect, 1.0)
    dialect.encode(SpeechStarted(0, 0), 0)
    assert dialect.receive_nothing() == [End()]
    assert dialect.patience is None
    assert hear(dialect, 1.0) == []
    assert said(dialect.encode(Final(0, " Late.", (), 0, 9000, "en"), 0)) == ['{"text":"Late."}']
    assert dialect.receive_end() == [Close(1000)]


def test_a_long_pause_ends_it_but_not_before_the_window_is_full() -> None:
    dialect = talk()
    for _ in range(50):
        assert [type(each) for each in hear(dialect, 0.1)] == [Hear]
    assert [type(each) for each in hear(dialect, 0.1)] == [Hear, End]


def test_a_pause_counts_from_the_end_of_speech_and_only_where_it_is_judged() -> None:
    dialect = talk()
    dialect.encode(SpeechStarted(0, 0), 0)
    assert len(hear(dialect, 6.0)) == 1
    assert len(hear(dialect, 1.0)) == 1, "somebody speaks"
    dialect.encode(SpeechStopped(0, 96_000), 0)  # at 6 s
    assert len(hear(dialect, 2.0)) == 1, "1 s of silence"
    assert len(hear(dialect, 1.0, lag=1.0)) == 1, "3 s of silence, of which one is not judged"
    assert len(hear(dialect, 1.0, lag=1.0)) == 2


def test_text_messages_are_no_audio() -> None:
    dialect = talk()
    commands = dialect.receive(dialect.read("hello"), 0.0)
    assert isinstance(commands[0], Hear)
    assert len(commands[0].samples) == 0


@pytest.mark.parametrize(
    "query", [{"response_format": "srt"}, {"language": "xx"}, {"temperature": "2"}]
)
def test_wrong_queries_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(InputError):
        parse(query)


def test_the_servers_defaults_hold_where_the_query_names_none() -> None:
    request = parse({}, language="de", format="text")
    assert (request.options.language, request.format) == ("de", "text")
    assert parse({}, format="srt").format == "json", "a default of REST that a socket cannot have"
    assert parse({"language": "en", "vad_filter": "false", "x": "y"}).options.language == "en"


def test_faults_are_the_reason_of_the_close() -> None:
    assert talk().fail(Overloaded("too many streams")) == [Close(1013, "too many streams")]
    assert talk().fail(ModelResting("it died")) == [Close(1013, "it died")]
    assert talk().fail(InputError("no such thing"))[0] == Close(1008, "no such thing")
    assert talk().fail(None)[0] == Close(1011, "the server failed; its log says why")
