"""Records that do not decode: found, told of, and left out of their batch, which is padded: no other rank is kept waiting."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastirv2.data.augment import Windows
from fastirv2.data.dataset import Records
from fastirv2.data.samples import Fed
from fastirv2.errors import DataError
from fastirv2.pipelines.images import decoding_error

OnBad = Literal["stop", "skip"]


class Faults:
    """The records of a data set that one rank has found not to decode.

    `error` is what is to end the run, once all ranks have agreed on it: until then the good records of a batch move up, and
    the last of them is repeated as padding; where the batch has none, as one of padding has when the last record is bad,
    the nearest one of the data set is. `bad` holds the numbers of all that were found.
    """

    def __init__(self, records: Records, on_bad: OnBad) -> None:
        self.error: DataError | None = None
        self._records, self._on_bad = records, on_bad
        self.bad: set[int] = set()
        self._untold: list[str] = []

    def repaired(self, fed: Fed) -> Fed:
        """Return a batch without the records that are known to be bad; raises DataError when there are no others."""
        if headless := self._records.headless:
            for number in sorted(headless.difference(self.bad).intersection(fed.numbers.tolist())):
                self._note(number, self._why_headless(number))
        if not self.bad:
            return fed
        bad = np.isin(fed.numbers, list(self.bad))
        good = np.flatnonzero(~bad)
        if not len(good):
            return fed._replace(numbers=np.full_like(fed.numbers, self._nearest_good(int(fed.numbers[0]))), valid=0)
        places = np.pad(good, (0, len(bad) - len(good)), mode="edge")
        windows = Windows(fed.windows.start[places], fed.windows.end[places])
        colours = tuple(drawn[places] for drawn in fed.colours)
        valid = int(np.count_nonzero(good < fed.valid))
        return Fed(fed.numbers[places], windows, fed.crop, valid, colours)

    def _nearest_good(self, number: int) -> int:
        """Return the record nearest to one that is bad, of those not known to be."""
        count = len(self._records)
        near = (other for distance in range(1, count) for other in (number - distance, number + distance))
        found = next((other for other in near if 0 <= other < count and other not in self.bad), None)
        if found is None:
            raise DataError(f"of {self._records.path} all {count:,} records cannot be decoded; build it anew")
        return found

    def find(self, fed: Fed) -> bool:
        """Look for bad records in a batch, and say whether there are any."""
        numbers = np.unique(fed.numbers).tolist()
        found = _those(numbers, self._why_unreadable) or _those(numbers, self._why_undecodable)
        for number, reason in found.items():
            self._note(number, reason)
        return bool(found)

    def refuse_headless(self) -> None:
        """Raise DataError where a record is no image by its first bytes, and such are not skipped: before anything is done."""
        headless = self._records.headless  # read here, not in the first step
        if self._on_bad == "stop" and headless:
            number = min(headless)
            self._note(number, self._why_headless(number))
        if self.error:
            raise self.error

    def _note(self, number: int, reason: str) -> None:
        """Take a record for bad."""
        self.bad.add(number)
        sentence = f"{self._records.where(number)} cannot be decoded ({reason})"
        if self._on_bad == "skip":
            self._untold.append(sentence)
        elif self.error is None:
            mend = "remove it, build an LMDB" if self._records.form == "files" else "build its LMDB anew"
            advice = f"{mend} with fastirv2-build-lmdb, which checks every image, or go on without it: --data.on-bad skip"
            self.error = DataError(f"{sentence}; {advice}")

    def untold(self) -> list[str]:
        """Return a sentence for each bad record that was skipped since the last call."""
        told, self._untold = self._untold, []
        return told

    def _why_headless(self, number: int) -> str:
        """Return what is wrong with a record that is no image by its first bytes."""
        return self._why_unreadable(number) or self._why_undecodable(number) or "its size cannot be told, or is beyond 65,535"

    def _why_unreadable(self, number: int) -> str:
        """Return what Pillow says against a record's image, or an empty string."""
        try:
            with Image.open(io.BytesIO(self._records[number][0])) as image:
                image.load()
        except UnidentifiedImageError:
            return "it is no image"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return str(error)
        return ""

    def _why_undecodable(self, number: int) -> str:
        """Return why the graph's decoder refuses an image that Pillow takes, or an empty string."""
        data = self._records[number][0]
        if not decoding_error(np.frombuffer(data, np.uint8)):
            return ""
        with Image.open(io.BytesIO(data)) as image:
            return f"{image.format} is not decoded here"


def _those(numbers: list[int], why: Callable[[int], str]) -> dict[int, str]:
    """Return the records that something is said against, with what it is."""
    return {number: reason for number in numbers if (reason := why(number))}
