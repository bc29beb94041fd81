"""Which files of models are data, and where downloads may come from."""

import json
import pickle
import threading
from pathlib import Path

import pytest

from streaming import hub, trust
from streaming.errors import ModelUnavailable, Unsupported


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.bin", pickle.dumps({"a": 1}, 2)),
        ("model.bin", pickle.dumps({"a": 1}, 5)),
        ("model.bin", b"PK\x03\x04torch"),
        ("model.bin", pickle.dumps({"a": 1}, 0)),
        ("pytorch_model.bin", b""),
        ("pytorch_model-00001-of-00002.bin", b""),
        ("Model.PT", b""),
        ("model.nemo", b""),
        ("modeling_whisper.py", b""),
        ("config.json", json.dumps({"auto_map": {}}).encode()),
        ("config.json", json.dumps({"a": [{"_target_": "os.system"}]}).encode()),
        ("preprocessor_config.json", json.dumps({"auto_map": {}}).encode()),
    ],
)
def test_what_runs_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Unsupported, match=r"run.*STT_ALLOW_CODE"):
        trust.check("m", tmp_path)
    trust.check("m", tmp_path, ["other.bin"])


def test_a_configuration_too_large_to_look_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_LARGEST", 100)
    whole = json.dumps({"a": "x" * 50}).encode()
    for size, refused in ((100, False), (101, True)):
        (tmp_path / "config.json").write_bytes(whole.ljust(size))
        if refused:
            with pytest.raises(Unsupported, match="too large"):
                trust.check("m", tmp_path)
        else:
            trust.check("m", tmp_path)


def test_what_is_data_is_taken(tmp_path: Path) -> None:
    for name, data in (
        ("model.bin", b"\x06\0\0\0\x0b\0WhisperSpec"),
        ("model.safetensors", b"x"),
        ("model.onnx", b"x"),
        ("config.json", b'{"a": "auto_map"}'),
        ("broken_config.json", b"{" * 100_000),
        ("README.md", b"auto_map"),
    ):
        (tmp_path / name).write_bytes(data)
    trust.check("m", tmp_path)


def test_a_record_is_held_against_the_files(tmp_path: Path) -> None:
    import hashlib
    import os

    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "a").write_bytes(b"data")
    trust.verify("m", snapshot)  # nobody knows
    trust.record(tmp_path, "abc", {"a": hashlib.sha256(b"data").hexdigest()})
    trust.verify("m", snapshot)
    os.utime(snapshot / "a", (1, 1))
    trust.verify("m", snapshot)
    assert json.loads((tmp_path / trust.RECORD).read_text())["files"]["a"]["modified"] == 10**9
    for data, words in ((b"atad", "SHA-256"), (b"dat", "3 bytes")):
        (snapshot / "a").write_bytes(data)
        with pytest.raises(ModelUnavailable, match=words):
            trust.verify("m", snapshot)
    (snapshot / "a").unlink()
    with pytest.raises(ModelUnavailable, match="gone"):
        trust.verify("m", snapshot)


@pytest.mark.parametrize(
    ("home", "url", "ours"),
    [
        ("https://huggingface.co", "https://huggingface.co/x", True),
        ("https://huggingface.co", "https://cdn-lfs.hf.co/x", True),
        ("https://huggingface.co", "https://cas-bridge.xethub.hf.co/x?y", True),
        ("https://huggingface.co", "http://cdn-lfs.hf.co/x", False),
        ("https://huggingface.co", "https://cdn-lfs.hf.co:8443/x", False),
        ("https://huggingface.co", "https://hf.co.example.com/x", False),
        ("https://huggingface.co", "https://evilhf.co/x", False),
        ("https://huggingface.co", "https://hf.co@127.0.0.1/x", False),
        ("https://huggingface.co", "http://169.254.169.254/latest", False),
        ("https://huggingface.co", "https://[::1]/x", False),
        ("https://huggingface.co", "file:///etc/passwd", False),
        ("https://huggingface.co", "https://store.mirror.example/x", True),
        ("https://huggingface.co", "http://store.mirror.example/x", True),
        ("https://huggingface.co", "http://10.0.0.7:9000/x", True),
        ("https://huggingface.co", "http://10.0.0.7:9001/x", False),
        ("https://hub.example", "https://hub.example/x", True),
        ("https://hub.example", "https://files.hub.example/x", True),
        ("https://hub.example", "https://cdn-lfs.hf.co/x", True),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/x", True),
        ("http://127.0.0.1:8000", "http://127.0.0.1:1/x", False),
        ("http://127.0.0.1:8000", "https://1.127.0.0.1/x", False),
        ("http://127.0.0.1:8000", "http://127.0.0.1:99999/x", False),
    ],
)
def test_where_downloads_may_come_from(
    monkeypatch: pytest.MonkeyPatch, home: str, url: str, ours: bool
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", home)
    assert hub._ours(url, ("mirror.example", "10.0.0.7:9000")) is ours


def test_two_that_downloaded_the_same_write_it_down_both(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "c").mkdir(parents=True)
    (tmp_path / "snapshots" / "c" / "model.bin").write_text("weights")
    faults: list[OSError] = []

    def record() -> None:
        try:
            for _ in range(300):
                trust.record(tmp_path, "c", {"model.bin": None})
        except OSError as error:
            faults.append(error)

    both = [threading.Thread(target=record) for _ in "ab"]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert faults == []
    assert sorted(each.name for each in tmp_path.iterdir()) == [trust.RECORD, "snapshots"]
