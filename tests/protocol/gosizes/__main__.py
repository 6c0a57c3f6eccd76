"""Asks Go for the table of sizes, by hand: python -m tests.protocol.gosizes > tests/protocol/sizes.json"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

FIXED = [
    *(b'{"Width":80,"Height":24}\n', b' \n{"Height": 24, "Width": 80}', b'{"width":1,"HEIGHT":65535,"x":"y"}', b""),
    *(b"{ width: 100, height: 30}", b'{"Width":80.0,"Height":2}', b'{"Width":"80","Height":2}', b'{"Width":-1}'),
    *(b'{"Width":1,"width":2,"Width":3,"Height":4,"height":null}', b'{"Width":true}', b'{"Width":65536,"Height":1}'),
    *(b'{"Width":1e1,"Height":1}', b'{"Width":01,"Height":1}', b'{"Width":00}', b'{"Width":-0,"Height":1}', b"[]"),
    *(b'{"a":{"Width":7},"Width":1,"Height":2}', b'{"a":[{"Width":7},1.5e+3,-0.0,""],"Width":1,"Height":2}', b"hello"),
    *(b'{"\\u0057idth":5,"h\\u0065ight":6}', b'{"Width\\u0000":5,"Width":1,"Height":2}', b'{"a":"\\x","Width":1}'),
    *(b'nullnull {"Width":1,"Height":2}', b'null1{"Width":1,"Height":2}', b'true{"Width":1,"Height":2}', b'"a"'),
    *(b'{"a":"\xff\xfe","Width":1,"Height":2}', b'{"W\xc4\xb1dth":9,"Width":1,"Height":2}', b"{\xff}", b"{NaN}"),
    *(b'{"Width":1,"Height":2,}', b'{"Width":1 "Height":2}', b'{"Width":1,,"Height":2}', b"{]}", b"{}}", b"{},{}"),
    *(b'{"a":"\t","Width":1,"Height":2}', b'{"a":"\\t\\u12aF\\ud800","Width":1,"Height":2}', b'{"a":"\\u12g4"}'),
    *(
        b'{"Width":{},"Height":2}',
        b'{"Width":[],"Height":2}',
        b'{"Width":nulL}',
        b'{"Width":1}{"Height":2}',
        b"\xef\xbb\xbf{}",
    ),
]
# Too large for the table: how many sizes Go finds in each stands beside it.
LARGE = [
    (b'{"a":' + b"[" * 9999 + b"]" * 9999 + b',"Width":1,"Height":2}', 1),
    (b'{"a":' + b"[" * 10000 + b"]" * 10000 + b',"Width":1,"Height":2}', 0),
    (b'{"' + b"W" * 5000 + b'":1,"Width":1,"Height":2}', 1),
    (b'{"a":' + b"1" * 5000 + b',"Width":1,"Height":2}', 1),
    (b'{"Width":1' + b"0" * 5000 + b',"Height":2}', 0),
    (b'{"Width":' + b" " * 5000 + b'1,"Height":2}', 1),
    (b'{"a":"' + b"x" * 100_000 + b'","Width":1,"Height":2}', 1),
]
_PIECES = [
    *(
        b'"Width"',
        b'"Height"',
        b'"width"',
        b'"hEIGHT"',
        b'"\\u0077idth"',
        b'"x"',
        b'""',
        b'"W"',
        b'"a\\"b"',
        b'"\\u00"',
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b" ",
        b"\n",
        b"null",
        b"true",
        b"false",
        b"nul",
        b'"',
        b"\\",
        b"\x00",
        b"\xff",
    ),
    *(b"0", b"1", b"24", b"80", b"65535", b"65536", b"-", b"-1", b"1.5", b"1e3", b"1E+", b"0x1", b"007", b"1.", b".5"),
]
_VALUES = [
    b"0",
    b"1",
    b"24",
    b"65535",
    b"null",
    b"-0.5e-7",
    b"[]",
    b"{}",
    b'[1,{"Width":3}]',
    b'"\\n"',
    b"true",
    b'{"a":[]}',
]


def inputs(seed: int, count: int) -> list[bytes]:
    """Inputs at random: mostly sizes that Go takes, with something put in, taken out or changed."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        text = b""
        for _ in range(chance.randint(1, 3)):
            members = []
            for _ in range(chance.randint(0, 4)):
                name = chance.choice(_PIECES[:8])
                usual = chance.choice(_VALUES[:5] if chance.random() < 0.7 else _VALUES)
                blank = chance.choice((b"", b"", b" ", b"\t\r\n"))
                members.append(name + blank + b":" + blank + usual + blank)
            text += b"{" + b",".join(members) + b"}" + chance.choice((b"", b"\n", b" "))
        for _ in range(chance.choice((0, 0, 1, 2))):
            at = chance.randint(0, len(text))
            text = text[:at] + chance.choice((b"", chance.choice(_PIECES))) + text[at + chance.randint(0, 2) :]
        made.append(text)
    return made


def asked(program: str, texts: list[bytes]) -> list[list[list[int]]]:
    """Go's sizes for each."""
    lines = "".join(text.hex() + "\n" for text in texts)
    run = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def main() -> None:
    here = Path(__file__).parent
    program = str(Path(tempfile.mkdtemp()) / "gosizes")
    subprocess.run(["go", "build", "-o", program, str(here / "main.go")], check=True)
    texts = FIXED + inputs(1, 300)
    rows = [json.dumps([text.hex(), sizes]) for text, sizes in zip(texts, asked(program, texts), strict=True)]
    sys.stdout.write("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
