"""A run stores its compiled programs, and a resumed run uses them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from lcjax.config import MemorySettings
from lcjax.config.run_record import read_run_record
from lcjax.train.__main__ import main
from lcjax.train.compiled.execution import SavedExecution
from lcjax.train.compiled.programs import Programs, digest_of
from tests.support.processes import records
from tests.support.settings import model_settings

BUILDER = {"device": "a GPU", "jax": "1.2.3"}
SHAPE = digest_of(["a shape"])


def add(programs: Programs, name: str, content: bytes = b"machine code") -> Path:
    """Adds a program as JAX does after compiling."""
    path = programs.folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def base(tmp_path) -> Path:
    return tmp_path / "programs"


@pytest.fixture
def first(base) -> Programs:
    """The programs of a run after its first checkpoint."""
    programs = Programs.new(base, BUILDER, SHAPE)
    add(programs, "jit_train_step-1-cache")
    add(programs, "jit_add-2-cache")
    programs.publish()
    return programs


def again(base: Path, run: str, builder: dict[str, str] = BUILDER) -> Programs:
    return Programs.of_run(base, run, builder, SHAPE)


def test_a_resumed_run_has_all_of_its_programs(base, first):
    resumed = again(base, first.run)
    assert resumed.folder == first.folder
    assert resumed.listed == first.listed
    assert resumed.lost is None


def test_a_process_that_is_killed_before_it_saves_leaves_all_programs(base, first):
    files = sorted(path.name for path in first.folder.iterdir())
    for _ in range(3):
        assert again(base, first.run).lost is None
    assert sorted(path.name for path in first.folder.iterdir()) == files


def test_a_run_of_the_same_shape_starts_from_copies(base, first):
    second = Programs.new(base, BUILDER, SHAPE)
    assert second.run != first.run
    assert second.listed == first.listed
    shutil.rmtree(first.folder)
    assert (second.folder / "jit_train_step-1-cache").read_bytes() == b"machine code"


@pytest.mark.parametrize(("builder", "shape"), [(BUILDER | {"jax": "1.2.4"}, SHAPE), (BUILDER, digest_of(["another"]))])
def test_a_run_of_another_shape_or_software_does_not(base, first, builder, shape):
    assert Programs.new(base, builder, shape).listed == {}


def test_a_damaged_program_is_not_copied(base, first):
    add(first, "jit_add-2-cache", b"machine c0de")
    assert list(Programs.new(base, BUILDER, SHAPE).listed) == ["jit_train_step-1-cache"]


def test_a_damaged_program_is_removed_and_counted(base, first):
    path = add(first, "jit_add-2-cache", b"machine c0de")
    resumed = again(base, first.run)
    assert not path.exists()
    assert resumed.lost == f"1 of the run's 2 compiled programs are missing or damaged in {first.folder}"


def test_a_program_that_belongs_to_no_checkpoint_is_removed(base, first):
    """A killed process may have written only a part of it, and JAX would not replace it."""
    torn = add(first, "jit_train_step-3-cache", b"mach")
    resumed = again(base, first.run)
    assert not torn.exists()
    assert resumed.lost is None


def test_a_lost_folder_is_named(base, first):
    shutil.rmtree(first.folder)
    assert again(base, first.run).lost == f"the run's compiled programs are not in {first.folder}"


def test_other_software_is_named_and_the_programs_are_not_removed(base, first):
    resumed = again(base, first.run, BUILDER | {"jax": "1.2.4"})
    assert resumed.lost == "jax was 1.2.3 and is 1.2.4"
    assert resumed.folder != first.folder
    assert again(base, first.run).lost is None


@pytest.mark.parametrize("run", ["../../elsewhere", "", "0123456789abcde", "/etc"])
def test_a_file_of_the_run_cannot_name_another_folder(base, first, run):
    resumed = again(base, run)
    assert resumed.folder.parent == base
    assert resumed.lost == "the run does not name its programs"


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": {"../../x": "0"}}', "\0\0"])
def test_an_invalid_inventory_counts_as_lost(base, first, content):
    (first.folder / "programs.json").write_text(content)
    assert again(base, first.run).lost == f"the run's compiled programs are not in {first.folder}"


def test_only_programs_that_affect_the_numbers_are_reported(first):
    add(first, "jit_copy-4-cache")
    assert first.publish() == []
    add(first, "jit_train_step-5-cache")
    assert first.publish() == ["jit_train_step-5-cache"]


def test_the_oldest_folders_are_removed_above_the_limit(base, first, monkeypatch):
    monkeypatch.setattr("lcjax.train.compiled.programs.LARGEST_CACHE", 10)
    second = Programs.new(base, BUILDER, digest_of(["another"]))
    assert not first.folder.exists()
    assert second.folder.exists()


def test_the_settings_of_jax_are_restored(first):
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in options]
    with first.compiling():
        assert jax.config.jax_compilation_cache_dir == str(first.folder)
    assert [getattr(jax.config, name) for name in options] == before


@pytest.fixture(scope="module")
def partial_run(short, tmp_path_factory) -> Path:
    """A folder with a run after two of its four steps, and with its programs."""
    folder = tmp_path_factory.mktemp("partial")
    output_dir = folder / "run"
    assert main([*short, "--output-dir", str(output_dir), "--programs-dir", str(folder / "base")]) == 0
    shutil.rmtree(output_dir / "checkpoints" / "4")
    shutil.rmtree(output_dir / "adapter")
    return folder


@pytest.fixture
def run(partial_run, tmp_path) -> tuple[Path, Path]:
    """Copies of the run and of the folder of its programs."""
    shutil.copytree(partial_run, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run", tmp_path / "base"


def resume(output_dir: Path, base: Path) -> int:
    return main(["--output-dir", str(output_dir), "--resume-from-checkpoint", "latest", "--programs-dir", str(base)])


def compiled_steps(base: Path) -> set[str]:
    return {path.name for path in base.glob("*/jit_train_step-*-cache")}


def test_a_real_run_resumes_with_its_first_program(run, capsys):
    output_dir, base = run
    [step] = compiled_steps(base)
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    assert resume(output_dir, base) == 0
    assert compiled_steps(base) == {step}
    assert "/jax/compilation_cache/cache_hits" in hits
    assert "bit for bit" not in capsys.readouterr().err


def test_a_real_run_without_its_programs_reports_the_consequence(run, capsys):
    output_dir, base = run
    shutil.rmtree(base)
    assert resume(output_dir, base) == 0
    said = capsys.readouterr().err
    assert "warning: the run's compiled programs are not in" in said
    assert "agree up to rounding, not bit for bit" in said


def test_programs_come_only_from_the_folder_of_this_user(run, capsys, tmp_path, monkeypatch):
    """A run from someone else may name any folder, such as one that came with it."""
    output_dir, _ = run
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["--output-dir", str(output_dir), "--resume-from-checkpoint", "latest"]) == 0
    assert f"are not in {tmp_path / 'cache' / 'lcjax' / 'programs'}" in capsys.readouterr().err
    record = read_run_record(output_dir)
    assert record["arguments"]["programs_dir"] is None


@pytest.fixture
def saved() -> SavedExecution:
    settings = model_settings(
        65536, use_gradient_checkpointing="offload", memory=MemorySettings(tile=2048), loss_chunk=256
    )
    return SavedExecution.of(Programs("0" * 16, Path(), BUILDER, SHAPE, {}), settings)


def test_a_resumed_step_has_the_settings_of_the_first_one(saved):
    again = SavedExecution.of_json(json.loads(json.dumps(dataclasses.asdict(saved))))
    assert again is not None
    settings = again.applied(model_settings(65536))
    assert settings == model_settings(
        65536, use_gradient_checkpointing="offload", memory=MemorySettings(tile=2048), loss_chunk=256
    )


@pytest.mark.parametrize("asked", [{"memory": "none"}, {"use_gradient_checkpointing": "offload_attn"}])
def test_settings_that_the_user_gives_are_used(saved, asked):
    assert saved.applied(model_settings(65536, **asked)) == model_settings(65536, **asked)


def test_a_run_continues_without_a_writable_cache_folder(short, finished, tmp_path, monkeypatch, capsys):
    """For example, the home directory may be read-only."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run = tmp_path / "run"
    assert main([*short, "--output-dir", str(run)]) == 0
    reason = (
        f"warning: compiled programs cannot be stored in {tmp_path}/file/lcjax/programs (Not a directory), choose a"
    )
    assert reason in capsys.readouterr().err
    assert records(run) == records(finished)
    shutil.rmtree(run / "checkpoints" / "4")
    resuming = ["--output-dir", str(run), "--resume-from-checkpoint", "latest"]
    assert main([*resuming, "--programs-dir", str(tmp_path / "file" / "programs")]) == 2
    assert f"error: --programs-dir {tmp_path}/file/programs cannot be created" in capsys.readouterr().err
    assert main(resuming) == 0
    assert reason in capsys.readouterr().err
    assert records(run) == records(finished)
