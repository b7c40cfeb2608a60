import subprocess
import sys

CODE = """
import subprocess
import torch
from torch._inductor import cpu_vec_isa
from workers.backends.aotinductor.build import use_instruction_set

# As on a server processor of today: each set is tried by compiling and running a program.
cpu_vec_isa.x86_isa_checker = lambda: ["avx2", "avx512", "avx512_vnni", "amx_tile"]
for name in ("_is_avx512_bf16_supported", "_is_vnni_supported", "_init_amx", "_is_amx_fp16_supported"):
    setattr(torch.cpu, name, lambda: True)
tried = []
cpu_vec_isa.VecISA.check_build = lambda self, code: tried.append(str(self)) or True
use_instruction_set()
print(cpu_vec_isa.pick_vec_isa(), tried)
"""


def test_packages_are_compiled_and_loaded_for_avx2_without_trying_wider_vectors():
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert said.stdout.split("\n")[0] == "avx2 []", said.stdout
