"""The text and its held-out part: what is read, in which order, cut where."""

from pathlib import Path

import pytest
import torch

from llamba_kernels.distill.text import (
    CHUNK_BYTES,
    WINDOWS_PER_CHUNK,
    check_apart,
    language_reference,
    read_text,
    text_files,
    token_windows,
    untrained_text,
)


class CharTokenizer:
    """One token per character, so that tests can count."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_default_text_is_the_standard_library_without_other_packages():
    files = text_files()
    names = {path.name for path in files}
    assert {"argparse.py", "typing.py"} <= names
    assert all(path.suffix == ".py" for path in files)
    assert not any("site-packages" in path.parts or "test" in path.parts for path in files)
    assert files == sorted(files)


def test_the_untrained_text_is_prose_that_no_training_sees():
    chunks = untrained_text()
    assert language_reference().is_file() and language_reference() not in {path.resolve() for path in text_files()}
    trained = "".join([*read_text().train, *read_text().held_out])
    for chunk in chunks[:3]:
        assert "statement" in chunk and not any(chunk[i : i + 400] in trained for i in range(0, 60_000, 6000))
    assert sum(map(len, chunks)) > 4 * CHUNK_BYTES


def test_an_untrained_text_of_the_users_counts_as_a_whole_and_may_not_be_trained_on(tmp_path):
    a, b = (write(tmp_path, f"{name}.txt", name * 3 * CHUNK_BYTES) for name in "ab")
    assert "".join(untrained_text(b)) == "b" * 3 * CHUNK_BYTES
    check_apart("quickstart", a, b)
    check_apart("quickstart", a, None)
    for data, other in ((tmp_path, b), ([a, b], [b]), (language_reference(), None)):
        with pytest.raises(
            ValueError, match="quickstart: other_data must share no file with the text to train on; got"
        ):
            check_apart("quickstart", data, other)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    for name in ("b.md", "a/c.rst", "a/d.py", "e.txt", "f.bin", "tests/g.py", "__pycache__/h.py"):
        write(tmp_path, name, "x")
    relative = [path.relative_to(tmp_path).as_posix() for path in text_files(tmp_path)]
    assert relative == ["a/c.rst", "a/d.py", "b.md", "e.txt"]
    named = [tmp_path / "f.bin", tmp_path / "a"]
    assert text_files(named) == [tmp_path / "a" / "c.rst", tmp_path / "a" / "d.py", tmp_path / "f.bin"]


def test_the_split_depends_on_the_files_and_not_on_how_they_are_named(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path, f"{name}/x.txt", name.join(f"{i:08d}" for i in range(20 * CHUNK_BYTES // 9)))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    a, b = tmp_path / "a", tmp_path / "b"
    expected = read_text([a, b])
    assert len(expected.held_out) == 1
    monkeypatch.chdir(tmp_path)
    for data in ([b, a], [a, b / "x.txt", b], [a, a, b], ["b", "a/../a/x.txt"], [a, b, tmp_path / "link"], tmp_path):
        assert read_text(data) == expected


def test_every_33rd_chunk_is_held_out_and_nothing_is_in_both(tmp_path):
    lines = "".join(f"line {i:08d}\n" for i in range(70 * CHUNK_BYTES // 14))
    text = read_text(write(tmp_path, "a.txt", lines))
    assert len(text.held_out) == 2 and len(text.train) == 68
    assert not set(text.train) & set(text.held_out)
    chunks = [lines[i : i + CHUNK_BYTES] for i in range(0, len(lines), CHUNK_BYTES)]
    assert text.held_out == [chunks[32], chunks[65]]
    assert text.train == chunks[:32] + chunks[33:65] + chunks[66:]


def test_a_short_text_holds_out_its_last_chunk(tmp_path):
    text = read_text(write(tmp_path, "a.txt", "a" * CHUNK_BYTES + "b" * 100))
    assert text.train == ["a" * CHUNK_BYTES] and text.held_out == ["b" * 100]


def test_windows_of_a_seed_are_the_same_each_time_and_differ_between_seeds():
    chunks = ["".join(chr(97 + (7 * c + i) % 26) for i in range(100)) for c in range(10)]
    first, again, other = (token_windows(CharTokenizer(), chunks, 8, 20, seed) for seed in ("align 0", "align 0", "x"))
    assert first.shape == (20, 8) and first.dtype == torch.int64
    assert torch.equal(first, again) and not torch.equal(first, other)
    text = ["".join(map(chr, row)) for row in first.tolist()]
    assert all(any(row in chunk for chunk in chunks) for row in text)


def test_windows_of_a_seed_come_from_many_chunks_and_no_window_comes_twice():
    chunks = ["".join(f"{chr(97 + c)}{i:03d}{chr(97 + c)}{i:03d}" for i in range(12)) for c in range(10)]
    for count, chunks_seen in ((5, 2), (20, 5), (40, 10), (110, 10), (120, 10)):
        rows = ["".join(map(chr, row)) for row in token_windows(CharTokenizer(), chunks, 8, count, "x").tolist()]
        assert len(set(rows)) == count and len({row[0] for row in rows}) == chunks_seen
    assert WINDOWS_PER_CHUNK == 4  # what the counts of chunks above follow from


def test_windows_without_a_seed_are_spread_over_all_chunks():
    windows = token_windows(CharTokenizer(), ["a" * 50, "b" * 50, "c" * 50], 8, 6)
    assert "".join(chr(row[0]) for row in windows.tolist()) == "aabbcc"


def test_windows_end_where_the_text_ends():
    assert token_windows(CharTokenizer(), ["abcdefghij"], 4, 100, "seed").shape == (2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: read_text(d / "absent"), "data must be files or folders that exist; got "),
        (lambda d: read_text(write(d, "e/x.bin", "").parent), "data must hold files ending in .py .txt .md .rst; got "),
        (lambda d: read_text(write(d, "a.txt", "x")), f"data must hold more than {CHUNK_BYTES} bytes of text; got 1 "),
        (
            lambda d: token_windows(CharTokenizer(), ["abc"], 1, 1),
            "window must be at least 2 and count at least 1; got",
        ),
        (lambda d: token_windows(CharTokenizer(), ["abc"], 8, 1), "chunks must hold at least one window of 8 tokens;"),
    ],
)
def test_errors_are_one_sentence(call, message, tmp_path: Path):
    with pytest.raises(ValueError) as error:
        call(tmp_path)
    assert message in str(error.value)
