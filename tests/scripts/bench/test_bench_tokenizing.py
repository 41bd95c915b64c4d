"""The script prints the numbers of a first run and of one with stored tokens."""

import re

import pytest

from bench_tokenizing import main
from tests.support.thin import thinned


@pytest.mark.parametrize("options", thinned([[], ["--one-document"]], lambda options: not options))
def test_the_second_run_finds_the_tokens_of_the_first(capsys, smollm2, options):
    assert main(["--megabytes", "0.05", "--model", str(smollm2), *options]) == 0
    first, stored = capsys.readouterr().out.splitlines()
    pattern = r"(first|stored) +([\d.]+) s +([\d.]+) MB/s +(\d+) MB of memory +([\d,]+) tokens"
    numbers = [re.fullmatch(pattern, line) for line in (first, stored)]
    assert [match and match[1] for match in numbers] == ["first", "stored"]
    assert [match and match[5] for match in numbers] == [numbers[0] and numbers[0][5]] * 2
