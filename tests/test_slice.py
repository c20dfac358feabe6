"""`--slice I/N`: every test is in exactly one of the N slices, and in the same one every time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Forty tests under the conftest of this folder."""
    pytester.makeini("[pytest]\nmarkers = finn: needs finn-plus\n")
    pytester.makeconftest((HERE / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("import pytest\n\n@pytest.mark.parametrize('n', range(40))\ndef test_it(n): pass\n")
    return pytester


def collected(project: pytest.Pytester, *options: str) -> list[str]:
    done = project.runpytest_inprocess("--collect-only", "-q", "-p", "no:cacheprovider", *options)
    return [line for line in done.outlines if "::" in line]


def test_slices_part_the_tests(project):
    parts = [collected(project, "--slice", f"{index}/3") for index in range(3)]
    assert all(len(part) > 5 for part in parts)
    assert sorted(name for part in parts for name in part) == sorted(collected(project))
    assert parts[1] == collected(project, "--slice", "1/3")


def test_one_slice_is_all(project):
    assert len(collected(project, "--slice", "0/1")) == len(collected(project)) == 40


@pytest.mark.parametrize("wanted", ["3/3", "1", "-1/3", "0/0", "1/3/5"])
def test_other_words_are_refused(project, wanted):
    done = project.runpytest_inprocess("--collect-only", f"--slice={wanted}")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"*--slice must be I/N with I from 0 to N?1, found '{wanted}'*"])
