"""Headers of GGUF files: what a sound one holds, and one clear error for any other."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sae_attr.files.gguf_header import read_header
from sae_attr.files.gguf_parts import part_files, read_gguf
from sae_attr.files.gguf_tensors import map_tensors
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import end_ids, model_fingerprint
from sae_attr.lm.weights import load_lm
from sae_attr.text.tokenizer_folder import load_tokenizer
from tests.gguf_files import byte_level_keys, convert, sentence_piece_keys, write_gguf
from tests.miniatures import write_llama

gguf = pytest.importorskip("gguf", reason="needs the gguf package, which writes files")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(
    tensors: int = 0, keys: int = 0, body: bytes = b"", version: int = 3
) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + body


def number(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def place(name: str, *sizes: int, kind: int = 0, start: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + axes + struct.pack("<IQ", kind, start)


HUGE = 2**64 - 1
PADDING = b"\0" * 256
BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "another format": (b"PK\3\4" + PADDING, "does not begin as a GGUF file does"),
    "cut in its counts": (b"GGUF\3\0\0\0\1", "it ends within its number of tensors"),
    "version 1": (header(version=1), "of version 1; versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "for big-endian machines"),
    "tensors": (header(HUGE) + PADDING, r"states 18,446,744,073,709,551,615 tensors"),
    "keys": (header(0, HUGE) + PADDING, "keys, more than any model"),
    "no keys there": (header(0, 9), "it ends within a key's name"),
    "long name": (header(0, 1, struct.pack("<Q", HUGE)), "a key's name has"),
    "long text": (
        header(0, 1, text("a") + struct.pack("<IQ", 8, 2**40)),
        "the value of 'a' has 1,099,511,627,776 bytes",
    ),
    "no UTF-8": (
        header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + PADDING),
        "a key's name is not UTF-8",
    ),
    "a value's type": (
        header(0, 1, text("a") + struct.pack("<I", 77) + PADDING),
        "the value of 'a' has the unknown type 77",
    ),
    "a list of lists": (
        header(0, 1, text("a") + struct.pack("<IIQ", 9, 9, 1) + PADDING),
        "'a' is a list of the unknown type 9",
    ),
    "a long list": (
        header(0, 1, text("a") + struct.pack("<IIQ", 9, 4, HUGE) + PADDING),
        "'a' has 18,446,744,073,709,551,615 items",
    ),
    "a list beyond the end": (
        header(0, 1, text("a") + struct.pack("<IIQ", 9, 4, 2**20)),
        "it ends within the value of 'a'",
    ),
    "a key twice": (
        header(0, 2, number("a", 1) + number("a", 2)),
        "the key 'a' is there twice",
    ),
    "a tensor twice": (
        header(2, 0, place("x", 1) * 2) + PADDING,
        "the tensor 'x' is there twice",
    ),
    "axes": (header(1, 0, place("x", *[1] * 9)) + PADDING, "'x' has 9 axes"),
    "an empty axis": (header(1, 0, place("x", 3, 0)) + PADDING, "an axis of length 0"),
    "outside": (
        header(1, 0, place("x", 4, start=2**40)) + PADDING,
        "'x' is said to begin at byte 1,099,511,627,8",
    ),
    "not aligned": (header(1, 0, place("x", 4, start=3)) + PADDING, "aligned to 32"),
    "alignment": (header(0, 1, number("general.alignment", 0)), "alignment is '0'"),
    "a terminal's escape": (
        header(1, 0, place("\x1b[31m", 4, start=3)) + PADDING,
        r"tensor '\\x1b\[31m'",
    ),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_one_error(tmp_path: Path, name: str) -> None:
    data, words = BAD_HEADERS[name]
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert str(caught.value).isprintable()


BAD_TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the end": (place("x", 64, 2**40), r"'x' .* ends at byte"),
    "type": (place("x", 4, kind=999), "the quantisation type 999, which the installed"),
    "blocks": (place("x", 48, kind=2), "no whole number of the 32 that Q4_0 packs"),
    "more rows than numbers": (place("x", 32, HUGE, HUGE), "ends at byte"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_bad_tensor_is_one_error(tmp_path: Path, name: str) -> None:
    body, words = BAD_TENSORS[name]
    file = tmp_path / "m.gguf"
    file.write_bytes(header(1, 0, body) + PADDING)
    with pytest.raises(ValueError, match=words) as caught:
        map_tensors(read_header(file).tensors.values())
    assert str(file) in str(caught.value)


# ---- sound files, damaged --------------------------------------------------------------


def sound_files(folder: Path) -> list[bytes]:
    """Models with each kind of tokenizer."""
    model = write_llama(folder / "hf", vocab=310)
    out = []
    for keys in (byte_level_keys(), sentence_piece_keys()):
        file = convert(model, folder / "m.gguf", types={"output.weight": "F16"}, **keys)
        out.append(file.read_bytes())
    return out


def changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A file cut short, or with some bytes of its header replaced."""
    if rng.random() < 0.3:
        return data[: rng.integers(0, len(data))]
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(4, 9000)), int(rng.choice([1, 4, 8]))
        value = int(rng.choice([0, 1, 9, 255, 2 ** (8 * size - 1)])) % 2 ** (8 * size)
        out[at : at + size] = value.to_bytes(size, "little")
    return bytes(out)


@pytest.mark.filterwarnings("ignore:.*cannot end a turn")
def test_damaged_files_raise_one_kind_of_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = sound_files(tmp_path)
    file = tmp_path / "x.gguf"
    readers: tuple[Callable[[str], object], ...] = (
        load_config,
        load_tokenizer,
        end_ids,
    )
    messages, start = [], time.monotonic()
    for turn in range(200):
        file.write_bytes(changed(sound[turn % 2], rng))
        for reader in (*readers, lambda name: map_tensors_of(Path(name))):
            try:
                reader(str(file))
            except ValueError as error:
                messages.append(str(error).replace("\n", " "))
    assert len(messages) > 200
    assert all(map(str.isprintable, messages))
    assert time.monotonic() - start < 60


def map_tensors_of(file: Path) -> object:
    return map_tensors(read_gguf(file).tensors.values())


def test_a_truncated_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    file = convert(write_llama(tmp_path / "hf"), tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is truncated or no sound GGUF: tensor"):
        load_lm(str(file), progress=False)


def test_a_shape_that_the_metadata_contradicts(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    file = convert(folder, tmp_path / "m.gguf")
    data = file.read_bytes()
    key = text("llama.feed_forward_length") + struct.pack("<I", 4)
    at = data.index(key) + len(key)
    file.write_bytes(data[:at] + struct.pack("<I", 23) + data[at + 4 :])
    with pytest.raises(
        ValueError, match=r"\(23, 16\) by its metadata, but the file has"
    ):
        load_lm(str(file), progress=False)


def write_keys(file: Path, arch: str, **keys: int) -> Path:
    return write_gguf(file, arch, keys, {"token_embd.weight": np.ones((4, 4))})


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_keys(file, "mamba")
    with pytest.raises(
        ValueError, match="the architecture 'mamba' is not read; known: "
    ):
        load_config(str(file))
    write_keys(file, "llama", context_length=8)
    with pytest.raises(ValueError, match=r"lacks llama\.embedding_length"):
        load_config(str(file))
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(file)
    more = {"llama.attention.clamp_kqv": 8.0}
    convert(write_llama(tmp_path / "hf"), file, **more)
    with pytest.raises(
        ValueError, match=r"not read .*\n'llama.attention.clamp_kqv': 8.0"
    ):
        load_config(str(file))


def test_an_unknown_tensor_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    folder = write_llama(tmp_path / "hf")
    convert(folder, file)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_\x1b.weight"))
    with pytest.raises(ValueError, match="missing") as caught:
        load_lm(str(file), progress=False)
    assert r"+ blk.1.attn_\x1b.weight (un" in str(caught.value)


# ---- several files ---------------------------------------------------------------------


def split_model(folder: Path) -> list[Path]:
    """A model in two files, as llama.cpp splits one."""
    whole = convert(write_llama(folder / "hf"), folder / "m.gguf")
    reader = gguf.GGUFReader(whole)
    files = []
    for part in (0, 1):
        files.append(folder / f"m-{part + 1:05d}-of-00002.gguf")
        writer = gguf.GGUFWriter(files[-1], "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        for name, field in reader.fields.items():
            if part == 0 and not name.startswith(("GGUF.", "general.arch")):
                writer.add_key_value(name, field.contents(), field.types[0])
        for tensor in reader.tensors[part::2]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def test_a_split_model_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    files = split_model(tmp_path)
    assert part_files(files[1]) == files
    whole = map_tensors_of(tmp_path / "m.gguf")
    for file in files:
        assert load_config(str(file)) == load_config(str(tmp_path / "hf"))
        parts = map_tensors_of(file)
        assert set(parts) == set(whole)
        for name, tensor in parts.items():
            np.testing.assert_array_equal(np.asarray(tensor), np.asarray(whole[name]))
    before = model_fingerprint(str(files[0]))
    data = bytearray(files[1].read_bytes())
    data[-40] ^= 1
    files[1].write_bytes(data)
    assert model_fingerprint(str(files[0])) != before
    files[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ValueError, match=r"lacks m-00002-of-00002\.gguf"):
        load_config(str(files[0]))
    with pytest.raises(ValueError, match="is one of 2 parts, but 1 of that name"):
        load_config(str(tmp_path / "elsewhere.gguf"))
