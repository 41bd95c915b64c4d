"""The script prints the numbers of a first run, of one with stored tokens, and of the peer."""

import re

import pytest

from bench_tokenizing import main
from tests.support.thin import thinned

NUMBERS = (
    r"(first|stored|peer) +([\d.]+) s +([\d.]+) MB/s +([\d.]+) processor s +(\d+) MB of memory +"
    r"(?P<tokens>[\d,]+) tokens"
)


@pytest.mark.parametrize("options", thinned([[], ["--one-document", "--no-peer"]], lambda options: not options))
def test_all_runs_find_the_same_number_of_tokens(capsys, smollm2, options):
    assert main(["--megabytes", "0.05", "--model", str(smollm2), *options]) == 0
    numbers = [re.fullmatch(NUMBERS, line) for line in capsys.readouterr().out.splitlines()]
    runs = ["first", "stored"] if options else ["first", "stored", "peer"]
    assert [match and match[1] for match in numbers] == runs
    assert len({match and match["tokens"] for match in numbers}) == 1
