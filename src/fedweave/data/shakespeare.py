# SPDX-License-Identifier: Apache-2.0
"""``shakespeare``: the 37 plays, one client per play and speaker, as in McMahan et al. 2017, section 3.

Text: Moby Lexical Tools 1992, XML by Jon Bosak 1996-1998, public domain.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from fedweave.data import cache
from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.files import Remote
from fedweave.errors import DataError, UsageError

_MIRRORS = (
    "https://raw.githubusercontent.com/johnmchambers/shakespeare/dbc5e156b8d61e18481a4633f5eb5b8298cff48a/inst/plays/",
    "https://www.ibiblio.org/xml/examples/shakespeare/",
)
START, PAD, VOCABULARY = 256, 257, 258
"""Tokens beyond the 256 byte values: before the first byte of a client's text, and after its last; and how many there are."""

PLAYS: tuple[tuple[str, int, str], ...] = (
    ("a_and_c.xml", 251898, "1746a3f38bde6434bac0355b05fd338142091f9d32f7217b76010782ad6bdde3"),
    ("alls_well.xml", 209730, "0aa524940e7b0734f34f367d42a3317cfacfd95fc1c8a45d2797208687c79cd4"),
    ("as_you.xml", 192140, "455b89cddb811e140c7003beccf332be9fab3c9e56e368a913d8b69f9f849267"),
    ("comedy.xml", 136841, "61c0805ada72c0a40984688566d13bd2dcdab48f33d7e18a87f1f96f04b39c54"),
    ("coriolanus.xml", 260100, "c3804c30dba1974bd931ed4c8d40d037d1cc6b1df82da1e5ad29433d3b6dc49e"),
    ("cymbeline.xml", 247365, "121857da70e0fe2dc542bf6042416a0996958e1a3d37118d37851fb233b2a1f6"),
    ("dream.xml", 145040, "8713aead899fd314f9fc9667406a7cf87eea630ee76fa4222e42cee4420552de"),
    ("hamlet.xml", 279663, "1cd6808e06d8dcfa7e66de30c2335d693c71cf66a4b310831e8086b2d37de68b"),
    ("henry_iv_1.xml", 214973, "32cba94e8f8c90f5bd586e5b3fe279f8cb74aca6e283c4274e1d5dff820c2985"),
    ("henry_iv_2.xml", 234182, "cb90527cbf293b20ea673ded26705d420563cde12fca69dd4eea572a27bedda9"),
    ("henry_v.xml", 226266, "267bcd10569b2d78681d0d223d401ebc7b5b1c7de9ac63134c9d641667604ccc"),
    ("henry_vi_1.xml", 196460, "04c90e61b2215e32baa3d4629c83e3df7b466d4d5d7aaf6a35a3ca16529feefe"),
    ("henry_vi_2.xml", 226008, "d0342d1d3a9096c37dd788cc37a5f022d40dd04f2f593d4e541567ebbd53fc50"),
    ("henry_vi_3.xml", 220202, "1cbff555edfcad92229971e38931ceb552b5670217c8cbaa14b6ef01c49c95f5"),
    ("henry_viii.xml", 217820, "02f7bb64d7561af706aa56e6227fef14114633d69dd5fd035cbf95e8df81858a"),
    ("john.xml", 178088, "87a0cdbf502504eeadfefad03053e44a1e80625d451b374b3e08d7661018f61c"),
    ("julius_caesar.xml", 183536, "21c825fa3d65838886f7312f00c24e4d46b3a5760fe38782941287f6ddca30a4"),
    ("lear.xml", 245849, "05c839ef9d5f310462a01f2bc33dfe2b4c453316a3ec9ae542ff3baab8d2eaf2"),
    ("loves_labor.xml", 206945, "fe16f1a0b7875cf127128648923aaa33feb848c90ed59db69e7dcf271ad00381"),
    ("m_for_m.xml", 202730, "b747586583675a12d56b919e2149260151f8be6a73bcc66451beea907e513bab"),
    ("macbeth.xml", 163077, "10c2974bb3e6f041b330fa82e6e1fe24618dbcb3877d58fac1c5021f6baa0b2a"),
    ("merchant.xml", 182039, "aadb14aa681b053565519d2f393358c2c0b0e41a5b04137e3b6b5ab702e78299"),
    ("merry_wives.xml", 207174, "f87e108970d93b24ddf69085b216b1e385ff14529c1a9984f90e7d562f2cb5d0"),
    ("much_ado.xml", 195214, "c7aab74e8ea322955da4cc2de03eee4d6013e8b01e5734cd5ce0956c79e92306"),
    ("othello.xml", 248777, "5697d36a8a814f98ada690e57d392d799678afc3ee5f4cf0d205b3f3d888d835"),
    ("pericles.xml", 169289, "d47d1943a789029f332585ec17a237f1bc222d377e27328b4db1cfcb3483263b"),
    ("r_and_j.xml", 218508, "38046c0212f35621fc64cf1c3b43729f0e5e0ce161a5952944624efee1a527a2"),
    ("richard_ii.xml", 192848, "3d6901ecc4097560166913b64f2f1e7bc4404b93e540f7485e2c691698e65a7c"),
    ("richard_iii.xml", 271414, "9ca8ab0e9113bb3b765fe88d34a74855701226dafb6d9746f9f4488da25f22b7"),
    ("taming.xml", 194295, "176993de768d3ad170de851369b2897c03f171855928fbd87ff2c1ff2a07d88d"),
    ("tempest.xml", 154689, "918b108ef057b19f6a038dc3a3f26f42cee8b5c2225d63df5e09e6be2ab8a2b3"),
    ("timon.xml", 177463, "2a77ed6626664e76a93b1aedf18562bf4e1918eb070372d0ade9a73ffa751bf4"),
    ("titus.xml", 180543, "e686eac27837890a0e924d0a98085a70db52a0bd33b197adcfd74fcd1b80d81c"),
    ("troilus.xml", 249421, "7781dfaf71c1da54e495a0ee76b1f299e51fc4edf596bb3a05b7e8f4d1ee6ee2"),
    ("twelfth_night.xml", 186075, "4412e763fada1c390e59dfead22cf5aa457036b42b2ad5655fc40443afd38b47"),
    ("two_gentlemen.xml", 164619, "19082224f80f6b6cb50b6b255e6f81fe78a5f59f5771de31a16693130180134f"),
    ("winters_tale.xml", 217135, "3de818e730643edb46090b518e379480f9581453a3f3095bf670ae39a449a9e8"),
)
"""(file, bytes, SHA-256)"""


def shakespeare(length: int = 80, min_lines: int = 2) -> Dataset:
    """Next-byte prediction: x [N, length] int64 tokens, y [N, length] int64 the byte that follows, or -100.

    Column ``"client"`` is ``"play/speaker"``. A client's lines, in the order of the play, are its text, a newline after each;
    the first 80% of its lines are training text, and the last 20%, at least one line, are test text. Each text is read as
    one stream: token 256 stands before its first byte, every byte is predicted exactly once, and the last sequence is filled up
    with token 257. Tokens 0 to 255 are bytes (the text is UTF-8), so the vocabulary is 258.

    Stage directions are not spoken and are left out, and so are empty lines. A speech of several speakers is each one's.

    Args:
        length: tokens per sequence.
        min_lines: speakers with fewer lines are left out; at least 2, as one line is test text.

    Raises:
        DataError: a file is damaged or cannot be had.
        UsageError: an option is out of its range.
    """
    for name, value, least in (("length", length, 1), ("min_lines", min_lines, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}; it must be a whole number from {least} up.")
    remotes = [Remote("shakespeare", *play, tuple(url + play[0] for url in _MIRRORS)) for play in PLAYS]
    content = hashlib.sha256("".join(sha for _, _, sha in PLAYS).encode()).hexdigest()[:16]
    key = f"shakespeare-1-{content}-{length}-{min_lines}"
    held = cache.decoded(key, remotes, lambda shelf, paths: _decode(shelf, paths, length, min_lines))
    speakers, lines = (int(number) for number in held["left_out"])
    notes = (f"{speakers:,} speakers with fewer than {min_lines} lines are left out ({lines:,} lines).",) if speakers else ()
    return Dataset(
        "shakespeare",
        held["x_train"],
        held["y_train"],
        held["x_test"],
        held["y_test"],
        classes=VOCABULARY,
        columns={"client": held["client_train"]},
        test_columns={"client": held["client_test"]},
        natural="client",
        notes=notes,
        key=key,
    )


def _decode(shelf: cache.Shelf, paths: list[Path], length: int, min_lines: int) -> None:
    spoken: dict[str, list[str]] = {}
    for path in paths:
        spoken.update(read_play(path))
    kept = {client: lines for client, lines in sorted(spoken.items()) if len(lines) >= min_lines}
    shelf.put("left_out", np.array([len(spoken) - len(kept), sum(map(len, spoken.values())) - sum(map(len, kept.values()))]))
    cuts = {client: len(lines) - math.ceil(len(lines) / 5) for client, lines in kept.items()}
    for part in ("train", "test"):
        texts = [lines[: cuts[client]] if part == "train" else lines[cuts[client] :] for client, lines in kept.items()]
        streams = [sequences("".join(f"{line}\n" for line in text).encode(), length) for text in texts]
        shelf.put(f"x_{part}", np.concatenate([x for x, _ in streams]))
        shelf.put(f"y_{part}", np.concatenate([y for _, y in streams]))
        shelf.put(f"client_{part}", np.repeat(np.array(list(kept)), [len(x) for x, _ in streams]))


def read_play(path: Path) -> dict[str, list[str]]:
    """The lines of each speaker of one play: ``"play/speaker"`` -> lines in the play's order; the play is the file's name.

    Raises:
        DataError: it is not such a file.
    """
    from xml.etree import ElementTree

    try:
        play = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} is not a play in XML ({error}); replace it by a good copy.") from None
    spoken: dict[str, list[str]] = {}
    for speech in play.iter("SPEECH"):
        # A stage direction within a line is a child element: its own text is not spoken, what follows it is.
        texts = ["".join([line.text or "", *(child.tail or "" for child in line)]).strip() for line in speech.iter("LINE")]
        for speaker in dict.fromkeys(" ".join((found.text or "").split()) for found in speech.iter("SPEAKER")):
            if speaker:
                spoken.setdefault(f"{path.stem}/{speaker}", []).extend(text for text in texts if text)
    return {client: lines for client, lines in spoken.items() if lines}


def sequences(text: bytes, length: int) -> tuple[AnyArray, AnyArray]:
    """Tokens and targets [N, length] int64 of one stream of bytes; see ``shakespeare``."""
    count = -(-len(text) // length)
    stream = np.frombuffer(text, np.uint8)
    x = np.full(count * length, PAD, np.int64)
    y = np.full(count * length, -100, np.int64)
    x[:1] = START
    x[1 : len(stream)] = stream[:-1]
    y[: len(stream)] = stream
    return x.reshape(count, length), y.reshape(count, length)
