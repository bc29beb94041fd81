"""Run with an openai 1.x: the beta's namespace and the first GA shape. Prints one transcript a line."""

import base64
import sys

from openai import OpenAI

url, path = sys.argv[1:]
with open(path, "rb") as file:
    audio = file.read()
client = OpenAI(
    api_key="any",
    base_url=url + "/v1",
    websocket_base_url=url.replace("http", "ws") + "/v1",
)
with open(path + ".wav", "rb") as file:
    print(client.audio.transcriptions.create(file=("a.wav", file), model="whisper-1").text)


def hear(connection):
    for at in range(0, len(audio), 4800):
        connection.input_audio_buffer.append(audio=base64.b64encode(audio[at : at + 4800]).decode())
    told = ""
    for event in connection:
        assert event.type != "error", event
        if event.type.endswith("input_audio_transcription.delta"):
            told += event.delta
        if event.type.endswith("input_audio_transcription.completed"):
            assert told == event.transcript
            print(event.transcript)
            return


query = {"intent": "transcription"}
with client.beta.realtime.connect(model="gpt-realtime", extra_query=query) as connection:
    assert connection.recv().type == "transcription_session.created"
    connection.transcription_session.update(
        session={
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1", "language": "en", "prompt": ""},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
        }
    )
    assert connection.recv().type == "transcription_session.updated"
    hear(connection)
if hasattr(client, "realtime"):
    with client.realtime.connect(model="gpt-realtime", extra_query=query) as connection:
        assert connection.recv().type == "session.created"
        given = {
            "transcription": {"model": "whisper-1"},
            "turn_detection": {"type": "semantic_vad", "eagerness": "high"},
        }
        connection.session.update(session={"type": "transcription", "audio": {"input": given}})
        assert connection.recv().type == "session.updated"
        hear(connection)
