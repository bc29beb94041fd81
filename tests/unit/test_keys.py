"""The keys file, and what comes of it while a server runs."""

import os
import tomllib
from pathlib import Path

import pytest

from server import keys
from server.auth import Keys
from server.keys import BadKeys


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0  # each look is due
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_given_once_and_kept_as_a_hash(file: Path) -> None:
    key = keys.add(file, "captions", ["transcribe"], {"streams": 4})
    assert key.startswith("osk_")
    assert len(key) == 47  # 256 bits in base64
    written = file.read_text("utf-8")
    assert key not in written
    assert tomllib.loads(written)["captions"]["scopes"] == ["transcribe"]
    assert file.stat().st_mode & 0o777 == 0o600
    (found,) = keys.read(file)
    assert (found.name, found.digest, found.scopes, found.limits) == (
        "captions",
        keys.digest(key),
        frozenset({"transcribe"}),
        (("streams", 4),),
    )
    assert found.digest.hex() not in repr(found)


def test_every_key_is_another(file: Path) -> None:
    made = {keys.add(file, f"k{number}", ["manage"], {}) for number in range(20)}
    assert len(made) == len(keys.read(file)) == 20


def test_removing_leaves_the_rest_as_it_was(file: Path) -> None:
    file.write_text("# of the office\n")
    for name in ("a", "b", "c"):
        keys.add(file, name, ["transcribe"], {})
    text = file.read_text("utf-8")
    keys.remove(file, "b")
    assert [key.name for key in keys.read(file)] == ["a", "c"]
    left = file.read_text("utf-8")
    assert left.startswith("# of the office\n")
    assert set(left.splitlines()) < set(text.splitlines())
    with pytest.raises(BadKeys, match="no key b"):
        keys.remove(file, "b")


@pytest.mark.parametrize("name", ["", "with space", "ü", "a.b", "x" * 65, '"]\n[evil'])
def test_names_are_plain(file: Path, name: str) -> None:
    with pytest.raises(BadKeys, match="letters, digits"):
        keys.add(file, name, ["transcribe"], {})
    assert not file.exists()


def test_a_name_is_taken_once(file: Path) -> None:
    keys.add(file, "a", ["transcribe"], {})
    with pytest.raises(BadKeys, match="already"):
        keys.add(file, "a", ["manage"], {})


HASH = 'hash = "sha256:' + "0" * 64 + '"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a", "is no TOML"),
        ("a = 1", "must be a table"),
        ('["a b"]', "must be a table"),
        ("[a]\n", "needs hash"),
        ('[a]\nhash = "secret"\nscopes = ["manage"]', "needs hash"),
        ("[a]\n" + HASH, "needs scopes"),
        ("[a]\n" + HASH + "scopes = []", "needs scopes"),
        ("[a]\n" + HASH + 'scopes = ["everything"]', "transcribe, manage, metrics"),
        ("[a]\n" + HASH + 'scopes = ["manage"]\nscope = 1', "'scope'"),
        ("[a]\n" + HASH + 'scopes = ["manage"]\nstreams = -1', "whole number"),
        ("[a]\n" + HASH + 'scopes = ["manage"]\nstreams = true', "whole number"),
        ("[a]\n" + HASH + 'scopes = ["manage"]\ncreated = "now"', "a date"),
        (f'[a]\n{HASH}scopes = ["manage"]\n[b]\n{HASH}scopes = ["manage"]', "two names"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(BadKeys, match=told) as found:
        keys.read(file)
    assert "secret" not in str(found.value)


def test_there_are_bounds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadKeys, match="cannot be read"):
        keys.read(file)
    file.write_text("#" * (keys.SIZE + 1))
    with pytest.raises(BadKeys, match="more than 1048576 bytes"):
        keys.read(file)
    file.write_bytes(b"\xff")
    with pytest.raises(BadKeys, match="UTF-8"):
        keys.read(file)
    file.unlink()
    keys.add(file, "a", ["manage"], {})
    monkeypatch.setattr(keys, "MOST", 1)
    with pytest.raises(BadKeys, match="the most there may be"):
        keys.add(file, "b", ["manage"], {})


def test_a_server_sees_what_changes_in_the_file(file: Path) -> None:
    first = keys.add(file, "a", ["transcribe"], {})
    server = Keys((), file, clock=Clock())
    held = server.find(first)
    assert held is not None
    second = keys.add(file, "b", ["manage"], {})
    found = server.find(second)
    assert found is not None
    assert found.name == "b"
    assert server.holds(held)
    keys.remove(file, "a")
    assert server.find(first) is None
    assert not server.holds(held)
    assert server.find(second) == found


def test_limits_may_change_under_a_stream_scopes_may_not(file: Path) -> None:
    key = keys.add(file, "a", ["transcribe"], {"streams": 1})
    server = Keys((), file, clock=Clock())
    held = server.find(key)
    assert held is not None
    text = file.read_text("utf-8")
    file.write_text(text.replace("streams = 1", "streams = 200"))
    assert server.holds(held)
    assert server.find(key) != held
    file.write_text(text.replace('"transcribe"', '"manage"'))
    assert not server.holds(held)


def test_a_file_that_breaks_or_goes_keeps_the_keys_it_had(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add(file, "a", ["transcribe"], {})
    server = Keys((), file, clock=Clock())
    file.write_text("[a\n" + key)
    assert server.find(key) is not None
    assert server.find("other") is None
    file.unlink()
    assert server.find(key) is not None
    assert "is no TOML" in caplog.text
    assert "cannot be read" in caplog.text
    assert key not in caplog.text
    keys.add(file, "b", ["transcribe"], {})
    assert server.find(key) is None


def test_a_file_without_keys_lets_nobody_in(file: Path) -> None:
    file.write_text("")
    server = Keys((), file)
    assert server.required
    assert server.find("") is None
    with pytest.raises(BadKeys):
        Keys((), file.with_name("missing"))


def test_plain_keys_and_those_of_the_file_are_both_good(file: Path) -> None:
    key = keys.add(file, "a", ["metrics"], {})
    server = Keys(("plain", "other"), file)
    plain = server.find("plain")
    assert plain is not None
    assert plain.scopes == {"transcribe", "manage", "metrics"}
    assert "plain" not in repr(plain)
    of_file = server.find(key)
    assert of_file is not None
    assert of_file.scopes == {"metrics"}
    assert not Keys(()).required


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_the_mode_somebody_chose_stays(file: Path) -> None:
    keys.add(file, "a", ["transcribe"], {})
    file.chmod(0o640)
    keys.add(file, "b", ["transcribe"], {})
    assert file.stat().st_mode & 0o777 == 0o640
