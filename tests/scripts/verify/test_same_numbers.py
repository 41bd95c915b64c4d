"""The comparison of commits: what it ignores in a compiled program, and what it compares."""

from __future__ import annotations

import io

import pytest
from jaxlib.mlir import ir
from jaxlib.triton import dialect

from lcjax_scripts.verify.parity.report.files import as_json
from lcjax_scripts.verify.parity.verdicts import Case, Verdict
from lcjax_scripts.verify.same_numbers.compare import differing
from lcjax_scripts.verify.same_numbers.measure import verdicts_of
from lcjax_scripts.verify.same_numbers.programs import unescaped, without_names

KERNEL = """
module @{name} {{
  tt.func public @{name}(%x: !tt.ptr<f32>) {{
    %c = arith.constant {constant} : i32 loc("{file}":{line}:7)
    tt.return loc("{file}":1:1)
  }}
}}
"""
CALL = """%call.{instruction} = f32[4]{{0}} custom-call(%x.{instruction}), custom_call_target="__gpu$xla.gpu.triton", \
metadata={{op_name="{name}" stack_frame_id={line}}}, \
backend_config={{grid_x = {grid} : i32, ir = "{ir}", name = "{name}", num_warps = 4 : i32}}"""
PROGRAM = f"""HloModule jit_{{module}}, entry_computation_layout={{{{(f32[4]{{{{0}}}})->f32[4]{{{{0}}}}}}}}

FileNames
1 "{{file}}"

ENTRY %main.{{instruction}} (x: f32[4]) -> f32[4] {{{{
  %x.{{instruction}} = f32[4]{{{{0}}}} parameter(0), metadata={{{{op_name="a \\"quoted\\" {{{{name}}}}"}}}}
  ROOT {CALL}
}}}}
"""
ORIGINAL = {
    **{"name": "attention_forward", "constant": 128, "file": "a.py", "line": 3},
    **{"module": "train_step", "instruction": 1, "grid": 2},
}


def program(**changes) -> str:
    """Returns a program with one Triton kernel, whose bytecode is escaped as in XLA's output."""
    fields = ORIGINAL | changes
    with ir.Context() as context:
        dialect.register_dialect(context)
        file = io.BytesIO()
        ir.Module.parse(KERNEL.format(**fields)).operation.write_bytecode(file)
    plain = set(b" !#$%&'()*+,-./:;<=>?@[]^_`{|}~") | set(range(48, 58)) | set(range(65, 91)) | set(range(97, 123))
    escaped = "".join(chr(byte) if byte in plain else f"\\{byte:02X}" for byte in file.getvalue())
    return PROGRAM.format(ir=escaped, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "flash_attention"},
        {"file": "moved/b.py", "line": 77},
        {"module": "step", "instruction": 1234},
    ],
)
def test_names_and_locations_are_ignored(changes):
    assert program(**changes) != program()
    assert without_names(program(**changes)) == without_names(program())


@pytest.mark.parametrize("changes", [{"constant": 129}, {"grid": 3}])
def test_what_is_computed_is_compared(changes):
    assert without_names(program(**changes)) != without_names(program())


def test_escapes_of_a_string():
    assert unescaped('ML\\EFR\\0D\\"a\\\\b') == b'ML\xefR\r"a\\b'


def test_every_difference_is_a_line():
    before = {"bytes": 1, "same": [1.5], "gone": 2, "program": ["a", "b"], "longer": ["a"]}
    now = {"bytes": 2, "same": [1.5], "program": ["a", "c"], "longer": ["a", "b"]}
    assert list(differing(before, now)) == [
        "bytes: 1 before, 2 now",
        "gone: 2 before, null now",
        "longer: 1 lines before, 2 now",
        "program, line 2: b before, c now",
    ]


def test_the_verdicts_are_those_of_the_harness_s_report():
    verdicts = {"pallas": Verdict(0.5, 0.25), "xla": Verdict(0.5, 2.0)}
    case = Case("gqa 3", "attention", "bfloat16", 64, 3, 128, (), "dq", verdicts, {})
    found = verdicts_of(as_json([case], {}, {}))
    assert {name: verdict["failed"] for name, verdict in found.items()} == {
        "gqa 3 bfloat16 dq pallas": False,
        "gqa 3 bfloat16 dq xla": True,
    }
