"""What the README says runs as it is written there."""

import re
import subprocess
from pathlib import Path

import torch

import llamba_kernels

ROOT = Path(__file__).parents[1]
PACKAGE = Path(llamba_kernels.__file__).parent
KERNELS_ALONE = (ROOT / "README.md").read_text().split("\n## The kernels alone\n")[1].split("\n## ")[0]


def test_the_kernels_alone():
    """One block after the other; no output depends on memory that nobody wrote."""
    blocks = re.findall(r"```python\n(.*?)```", KERNELS_ALONE, flags=re.DOTALL)
    names, shapes, positions = {}, [], []
    for block in blocks:
        exec(block, names)
        assert names["y"].isfinite().all()
        shapes.append(names["y"].shape)
        positions.append(names["cursor"].position(0))
    assert shapes == [(1, 4, 80, 64), (1, 4, 32, 64)] and positions == [3, 2]
    for name in "kv":  # the accepted path lies where a chain's tokens would
        assert torch.equal(names[f"{name}_cache"][0, :, :2], names[name][0, [0, 2]].transpose(0, 1))


PROGRAM = """
#include <stdio.h>
#include "llamba.h"

int main(void) {
  const float gate[2] = {0, 1000}, up[2] = {5, 2};
  float out[2];
  llamba_silu_mul_args args = {sizeof(args), LLAMBA_FLOAT32, .batch = 1, .ntokens = 1, .width = 2};
  args.gate = gate, args.up = up, args.out = out;
  if (llamba_silu_mul_cpu(&args) != LLAMBA_OK) return 1;
  printf("%g %g\\n", out[0], out[1]);
  args.width = -1;
  if (llamba_silu_mul_cpu(&args) != LLAMBA_VALUE_ERROR) return 1;
  puts(llamba_last_error());
  return 0;
}
"""


def test_a_c_program(tmp_path):
    (tmp_path / "main.c").write_text(PROGRAM)
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    (tmp_path / "llamba_kernels").symlink_to(PACKAGE)
    command = re.search(r"^    (cc .*)$", KERNELS_ALONE, flags=re.MULTILINE)[1]
    result = subprocess.run(f"{command} && ./a.out", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "0 2000\nsilu_mul: width must be at least 0; got -1\n"
